// A second way to convolve, for few channels of a group: lanes are neighbouring columns of one output channel instead
// of channels of one position, so that 3 input channels, 10 output channels or depthwise groups leave no lane idle and
// no patch has to be gathered.
//
// A block of destination rows of one sample reads planes: for each source channel, the rows that it needs with zeros
// where the convolution pads, in the accumulator's type. With a step between destination columns (a stride), each
// plane row is stored as `step` phases, so that the columns that one tap reads lie side by side.
#pragma once

#include <vector>

#include "convolve.h"
#include "transpose.h"
#include "words.h"

namespace film::FILM_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPlaneChannels = 12;  // output channels of a register tile, at most: 24 sums of 32 registers
#else
constexpr int kPlaneChannels = 6;  // 12 of 16
#endif

// Whether this is the faster way for a kernel whose register tiles of convolve.h or unit_tile.h would have `filled`
// places in their lanes and sum `products`: measured, see bench/NOTES.md. `tensor` is read or written, with `sources`
// channels of a group: where channels lie side by side, planes have to be turned first.
inline bool suits_planes(const Problem& p, const View& tensor, int64_t filled, int64_t sources, int64_t products) {
  constexpr int64_t kRow = 8, kNarrowGroup = 8, kFewChannels = 4, kFewProducts = 63, kWideRow = 24;
  if (p.w.out < kRow) return false;
  if (p.groups > 1 && p.group_out() < kNarrowGroup) return true;
  const int64_t lanes = round_up(filled, kVectorBytes / (p.dtype == DType::f64 ? 8 : 4));
  if (lanes >= 4 * filled) return products <= 1024 || p.w.out >= kWideRow;
  if (3 * lanes >= 4 * filled && lanes > filled) return products <= (p.w.stride == 1 ? 256 : 160);
  return (tensor.w == 1 || sources <= kFewChannels) && products <= kFewProducts;
}

// Whether planes of a whole row would take more memory than a thread should have at hand.
inline bool has_long_rows(const Problem& p) {
  constexpr int64_t kMost = int64_t(1) << 22;  // elements
  return p.in_channels * p.w.in + p.out_channels * p.w.out > kMost;
}

// Rows of 1x1 convolutions have at least so many columns, and not all, since rows are what threads share.
constexpr int64_t kPlaneColumns = 128;

// The planes of a block.
struct PlaneShape {
  int64_t rows, phases, pitch;  // of one channel; a row is phases * pitch elements
  int64_t row() const { return phases * pitch; }
  int64_t plane() const { return rows * row(); }
};

// Room for `rows` destination rows of all columns, and for vectors that begin at any of them.
template <class A>
PlaneShape plane_shape(const Taps& h, const Taps& w, int64_t rows, int vectors) {
  const int64_t columns = (w.extent(w.count) + w.step - 1) / w.step;
  return {h.extent(rows), w.step, columns + vectors * kLanes<A>};
}

// Where tap t of an axis reads, from the first source row or column of a block on.
inline int64_t from_low(const Taps& taps, size_t t) { return taps.offset[t] - taps.low(); }

// For each product (source channel, kernel row, kernel column), its place in the planes.
inline std::vector<int64_t> plane_offsets(const Taps& h, const Taps& w, int64_t channels, const PlaneShape& shape) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < channels; ++c)
    for (size_t i = 0; i < h.offset.size(); ++i)
      for (size_t j = 0; j < w.offset.size(); ++j) {
        const int64_t column = from_low(w, j);
        offsets.push_back(c * shape.plane() + from_low(h, i) * shape.row() + column % w.step * shape.pitch +
                          column / w.step);
      }
  return offsets;
}

// Fills the first `rows` rows of the planes of all channels, for destination rows from h0 on of sample n.
// source(dst, pitch, n, row, w0, w1) writes columns [w0, w1) of a source row, channel after channel, `pitch` apart.
template <class A, class Source>
void fill_planes(A* planes, A* line, const PlaneShape& shape, int64_t rows, const Taps& h, const Taps& w,
                 int64_t channels, int64_t n, int64_t h0, Source& source) {
  const int64_t first_w = w.low(), columns = w.extent(w.count), plane = shape.plane();
  const int64_t begin = std::clamp<int64_t>(-first_w, 0, columns);
  const int64_t end = std::clamp<int64_t>(w.source - first_w, begin, columns);
  for (int64_t r = 0; r < rows; ++r) {
    A* row = planes + r * shape.row();
    const int64_t source_row = h0 * h.step + h.low() + r;
    if (source_row < 0 || source_row >= h.source || begin == end) {
      for (int64_t c = 0; c < channels; ++c) std::memset(row + c * plane, 0, shape.row() * sizeof(A));
      continue;
    }
    if (shape.phases == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        std::memset(row + c * plane, 0, begin * sizeof(A));
        std::memset(row + c * plane + end, 0, (shape.pitch - end) * sizeof(A));
      }
      source(row + begin, plane, n, source_row, first_w + begin, first_w + end);
      continue;
    }
    source(line, end - begin, n, source_row, first_w + begin, first_w + end);
    for (int64_t c = 0; c < channels; ++c) {
      std::memset(row + c * plane, 0, shape.row() * sizeof(A));
      const A* src = line + c * (end - begin) - begin;
      for (int64_t phase = 0; phase < shape.phases; ++phase) {
        A* dst = row + c * plane + phase * shape.pitch;
        const int64_t first = (begin - phase + shape.phases - 1) / shape.phases;
        for (int64_t i = std::max<int64_t>(first, 0); i * shape.phases + phase < end; ++i)
          dst[i] = src[i * shape.phases + phase];
      }
    }
  }
}

// Columns [w0, w1) of row (n, h), channels [c0, c0 + channels) one after another, `pitch` elements apart.
template <class A, class T>
void load_planes(A* dst, int64_t pitch, const View& view, int64_t n, int64_t h, int64_t w0, int64_t w1, int64_t c0,
                 int64_t channels) {
  const T* src = static_cast<const T*>(view.data) + n * view.n + h * view.h + w0 * view.w + c0 * view.c;
  const int64_t columns = w1 - w0;
  if (view.w == 1) {
    for (int64_t c = 0; c < channels; ++c) widen_copy(dst + c * pitch, src + c * view.c, columns);
  } else if (view.c == 1) {
    turn<A>(dst, pitch, src, view.w, columns, channels);
  } else {
    for (int64_t w = 0; w < columns; ++w)
      for (int64_t c = 0; c < channels; ++c) dst[c * pitch + w] = widen<A>(src[w * view.w + c * view.c]);
  }
}

template <class A>
LoadRow<A> plane_loader(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> LoadRow<A> { return load_planes<A, decltype(element)>; });
}

// out[K][V * lanes] = sum over products of weights[product][K] * planes, in chains of kChunk products.
template <class A, int K, int V>
void multiply_planes(const int64_t* offsets, int64_t products, const A* base, const A* __restrict weights,
                     A* __restrict out) {
  constexpr int L = kLanes<A>;
  for (int64_t begin = 0; begin == 0 || begin < products; begin += kChunk) {
    Vector<A> sum[K][V] = {};
    const int64_t end = std::min(begin + kChunk, products);
    for (int64_t r = begin; r < end; ++r, weights += K) {
      const A* src = base + offsets[r];
      Vector<A> x[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) x[v] = load(src + v * L);
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[k][v] += weights[k] * x[v];
    }
    put_sums(out, sum, begin == 0);
  }
}

template <class A>
using MultiplyPlanes = void (*)(const int64_t*, int64_t, const A*, const A*, A*);

// The widest tile that fits registers: four vectors of columns for up to a third of the channels, else two.
template <class A, int K = 1>
MultiplyPlanes<A> planes_multiplier(int64_t channels, int vectors) {
  if constexpr (K > kPlaneChannels) {
    return nullptr;
  } else {
    if (channels != K) return planes_multiplier<A, K + 1>(channels, vectors);
    if constexpr (K <= kPlaneChannels / 2)
      if (vectors == 4) return multiply_planes<A, K, 4>;
    return multiply_planes<A, K, 2>;
  }
}

// One pass over the destination, as in convolve.h, in planes. For each destination row and run of columns:
//   epilogue.begin(); then for some channels at a time epilogue(tile, vectors, n, h, i, count, first channel, channels)
//   with columns i .. i + count of the pass, channels through all groups; then epilogue.end(n, h, i, count)
// `weights` are packed by pack_plane_weights. An epilogue is copied for every thread.
template <class A, class Source, class Epilogue>
void convolve_planes(const Pass<A>& pass, int64_t batch, int64_t groups, int64_t source_channels, int64_t channels,
                     const Source& source, const Epilogue& shared_epilogue) {
  if (batch * pass.h.count * pass.w.count == 0) return;
  constexpr int64_t kPlaneBytes = 256 * 1024;                   // of a block: L2 holds them
  constexpr int64_t kRowBytes = 4 << 20;                        // of a row at most, which is cut where it is longer
  const int64_t step = share_evenly(channels, kPlaneChannels);  // channels of a tile
  const auto filled = [&](int64_t unit) { return round_up(pass.w.count, unit * kLanes<A>); };
  const int vectors = step <= kPlaneChannels / 2 && 9 * filled(4) <= 10 * filled(2) ? 4 : 2;
  const int64_t width = vectors * kLanes<A>, sources = groups * source_channels;
  const auto bytes_of = [&](const Taps& w) {
    return sources * plane_shape<A>(pass.h, w, 1, vectors).row() * pass.h.step * static_cast<int64_t>(sizeof(A));
  };
  const int64_t parts = 1 + (bytes_of(pass.w) - 1) / kRowBytes;
  const int64_t most = round_up((pass.w.count + parts - 1) / parts, width);
  const int64_t cuts = (pass.w.count + most - 1) / most;
  const Taps first_part = part_of(pass.w, 0, most);
  const int64_t row_bytes = bytes_of(first_part);
  const int64_t share = (batch * pass.h.count + 4 * thread_count() - 1) / (4 * thread_count());
  const int64_t rows = std::clamp<int64_t>(std::min(kPlaneBytes / std::max<int64_t>(row_bytes, 1), share), 1,
                                           std::min<int64_t>(pass.h.count, 64));
  const int64_t blocks = (pass.h.count + rows - 1) / rows;
  const PlaneShape shape = plane_shape<A>(pass.h, first_part, rows, vectors);
  const std::vector<int64_t> offsets = plane_offsets(pass.h, pass.w, source_channels, shape);
  parallel(batch * blocks * cuts, [&](int64_t begin, int64_t end) {
    Scratch<A> planes(sources * shape.plane()), line(sources * first_part.extent(first_part.count));
    Scratch<A> tile(kPlaneChannels * 4 * kLanes<A>);
    Source rows_of = source;
    Epilogue epilogue = shared_epilogue;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / cuts, i0 = task % cuts * most;
      const int64_t n = block / blocks, h0 = block % blocks * rows, h1 = std::min(h0 + rows, pass.h.count);
      const Taps w = part_of(pass.w, i0, i0 + most);
      if (pass.products > 0)
        fill_planes<A>(planes, line, shape, pass.h.extent(h1 - h0), pass.h, w, sources, n, h0, rows_of);
      for (int64_t h = h0; h < h1; ++h)
        for (int64_t i = 0; i < w.count; i += width) {
          const int64_t count = std::min(width, w.count - i);
          epilogue.begin();
          for (int64_t g = 0; g < groups; ++g) {
            const A* base = planes + g * source_channels * shape.plane() + (h - h0) * pass.h.step * shape.row() + i;
            const A* weights = pass.weights[g];
            for (int64_t k = 0; k < channels; k += step) {
              const int64_t some = std::min(step, channels - k);
              planes_multiplier<A>(some, vectors)(offsets.data(), pass.products, base, weights, tile);
              epilogue(static_cast<A*>(tile), vectors, n, pass.h.first + pass.h.spacing * h, i0 + i, count,
                       g * channels + k, some);
              weights += pass.products * some;
            }
          }
          epilogue.end(n, pass.h.first + pass.h.spacing * h, i0 + i, count);
        }
    }
  });
}

// The weights as convolve_planes reads them: for each group and each of its tiles' channels, [product][channel].
// `transposed` as pack_weights has it.
template <class A, class T>
void pack_plane_weights(A* packed, Pass<A>& pass, const View& weight, int64_t groups, int64_t source_channels,
                        int64_t channels, bool transposed) {
  const T* data = static_cast<const T*>(weight.data);
  const int64_t step = share_evenly(channels, kPlaneChannels);
  for (int64_t g = 0; g < groups; ++g) {
    pass.weights.push_back(packed);
    const T* of_group = data + g * (transposed ? source_channels : channels) * weight.n;
    for (int64_t k0 = 0; k0 < channels; k0 += step)
      for (int64_t s = 0; s < source_channels; ++s)
        for (int64_t kh : pass.h.kernel)
          for (int64_t kw : pass.w.kernel)
            for (int64_t k = k0; k < std::min(k0 + step, channels); ++k) {
              const int64_t at = transposed ? s * weight.n + k * weight.c : k * weight.n + s * weight.c;
              *packed++ = widen<A>(of_group[at + kh * weight.h + kw * weight.w]);
            }
  }
}

// Columns i .. i + count of a pass, of some channels from c0 on, out of a tile [channels][pitch].
template <class A, class T>
void store_planes(const View& view, const A* tile, int64_t pitch, const Taps& w, int64_t n, int64_t h, int64_t i,
                  int64_t count, int64_t c0, int64_t channels) {
  T* dst = static_cast<T*>(view.data) + n * view.n + h * view.h + (w.first + w.spacing * i) * view.w + c0 * view.c;
  const int64_t step = w.spacing * view.w;
  if (step == 1) {
    for (int64_t c = 0; c < channels; ++c) narrow_copy(dst + c * view.c, tile + c * pitch, count);
  } else if (view.c == 1) {
    turn<A>(dst, step, tile, pitch, channels, count);
  } else {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t c = 0; c < channels; ++c) dst[j * step + c * view.c] = narrow<T>(tile[c * pitch + j]);
  }
}

template <class A>
using StorePlanes = void (*)(const View&, const A*, int64_t, const Taps&, int64_t, int64_t, int64_t, int64_t, int64_t,
                             int64_t);

template <class A>
StorePlanes<A> plane_storer(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> StorePlanes<A> { return store_planes<A, decltype(element)>; });
}

// The input's own planes.
template <class A>
struct PlainPlanes {
  View view;
  LoadRow<A> load;
  int64_t channels;

  void operator()(A* dst, int64_t pitch, int64_t n, int64_t h, int64_t w0, int64_t w1) {
    load(dst, pitch, view, n, h, w0, w1, 0, channels);
  }
};

}  // namespace film::FILM_ISA
