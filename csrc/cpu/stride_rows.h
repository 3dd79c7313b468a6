// The passes of grad_input, one for each residue of the stride, and how they are run together.
#pragma once

#include "convolve.h"
#include "planes_choice.h"

namespace film::FILM_ISA {

// `sources` are elements of a position's source: channels, or pairs of them, of a group.
template <class E>
std::vector<Pass<E>> grad_input_passes(const Problem& p, int64_t sources) {
  std::vector<Pass<E>> passes;
  for (int64_t fh = 0; fh < std::min(p.h.stride, p.h.in); ++fh)
    for (int64_t fw = 0; fw < std::min(p.w.stride, p.w.in); ++fw) {
      Pass<E> pass{grad_input_taps(p.h, fh), grad_input_taps(p.w, fw), 0, {}};
      pass.products = pass.h.offset.size() * pass.w.offset.size() * sources;
      passes.push_back(pass);
    }
  return passes;
}

inline int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Destination rows i0 .. i1 of a pass.
template <class E>
Pass<E> rows_of(const Pass<E>& pass, int64_t i0, int64_t i1) {
  return {part_of(pass.h, i0, i1), pass.w, pass.products, pass.weights};
}

// Row h of a sample from pixels to where channels lie apart.
template <class A, class T>
void store_row(const View& out, const A* pixels, int64_t h, const Problem& p) {
  T* dst = static_cast<T*>(out.data) + h * out.h;
  if (out.w == 1) return turn<A>(dst, out.c, pixels, p.in_channels, p.w.in, p.in_channels);
  for (int64_t c = 0; c < p.in_channels; ++c)
    for (int64_t w = 0; w < p.w.in; ++w) dst[w * out.w + c * out.c] = narrow<T>(pixels[w * p.in_channels + c]);
}

// A stride's passes, some rows of one sample at a time: what they read stays at hand, and where channels lie apart,
// what they write comes together (pixel by pixel, in the accumulator's type) before it goes to memory in whole rows.
template <class A, class E, class Source, class Tiles>
void run_in_rows(const Problem& p, const GradInputArgs& args, const std::vector<Pass<E>>& passes, int64_t sources,
                 const Source& source, StoreTile<A> store, Tiles tiles) {
  constexpr int64_t kBytes = 256 << 10;
  const View& out = args.grad_input;
  const bool apart = out.c != 1 && p.in_channels > 1;
  const int64_t pixels_of_row = p.w.in * p.in_channels, strides = (p.h.in + p.h.stride - 1) / p.h.stride;
  const int64_t share = (p.batch * strides + 4 * thread_count() - 1) / (4 * thread_count());
  const int64_t rows = std::clamp<int64_t>(
      std::min<int64_t>(kBytes / (p.h.stride * pixels_of_row * static_cast<int64_t>(sizeof(A))), share), 1, strides);
  const int64_t parts = (strides + rows - 1) / rows;
  parallel(p.batch * parts, [&](int64_t begin, int64_t end) {
    Scratch<A> pixels(apart ? rows * p.h.stride * pixels_of_row : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / parts, i0 = task % parts * rows, h0 = i0 * p.h.stride;
      const View here{pixels, 0, 1, pixels_of_row, p.in_channels};
      const View there{static_cast<char*>(out.data) + (n * out.n + h0 * out.h) * size_of(p.dtype), 0, out.c, out.h,
                       out.w};
      const auto of_sample = [&](E* dst, const ColumnRun& run, const ChannelRange& channels) {
        source(dst, {n, run.h, run.first, run.count}, channels);
      };
      for (const Pass<E>& pass : passes)
        convolve(rows_of(pass, i0, i0 + rows), 1, p.groups, sources, p.group_in(), of_sample,
                 apart ? store_to<A>(here, p.group_in(), store_tile<A, A>) : store_to<A>(there, p.group_in(), store),
                 tiles);
      if (!apart) continue;
      with_storage<A>(p.dtype, [&](auto element) {
        for (int64_t h = 0; h < std::min(rows * p.h.stride, p.h.in - h0); ++h)
          store_row<A, decltype(element)>(there, pixels + h * pixels_of_row, h, p);
      });
    }
  });
}

// All passes; A is what sums are in, and `store` puts a tile of them where it belongs.
template <class A, class E, class Source, class Tiles>
void run_passes(const Problem& p, const GradInputArgs& args, const std::vector<Pass<E>>& passes, int64_t sources,
                const Source& source, StoreTile<A> store, Tiles tiles) {
  if (passes.size() > 1 && !has_long_rows(p)) return run_in_rows<A>(p, args, passes, sources, source, store, tiles);
  for (const Pass<E>& pass : passes)
    convolve(pass, p.batch, p.groups, sources, p.group_in(), source, store_to<A>(args.grad_input, p.group_in(), store),
             tiles);
}

}  // namespace film::FILM_ISA
