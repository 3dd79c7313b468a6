// The convolution that forward and grad_input share: an implicit matrix product, [positions x R] patches with [R x
// channels] packed weights, whose tiles stay in registers over the whole of R and then go to an epilogue.
//
// A destination position i of one dimension reads source positions i * step + offset[t], one for each of its taps:
//   forward      step = stride, offset[t] = t * dilation - padding
//   grad_input   one pass for each residue f of the stride: destination f + stride * i, step = 1 and
//                offset = (f + padding - t * dilation) / stride, for those taps t that divide
#pragma once

#include <algorithm>
#include <vector>

#include "strip.h"

namespace film::FILM_ISA {

struct Taps {
  int64_t source;               // size of the source in this dimension
  int64_t count;                // destination positions of this pass
  int64_t first, spacing;       // destination coordinate = first + spacing * i
  int64_t step;                 // source positions from one destination to the next
  std::vector<int64_t> offset;  // ascending
  std::vector<int64_t> kernel;  // which kernel tap each one is
  int64_t low() const { return offset.empty() ? 0 : offset.front(); }
  int64_t extent(int64_t n) const { return offset.empty() ? 1 : (n - 1) * step + offset.back() - offset.front() + 1; }
  bool consecutive() const {
    for (size_t t = 1; t < offset.size(); ++t)
      if (offset[t] != offset[t - 1] + 1) return false;
    return true;
  }
};

inline Taps forward_taps(const Axis& axis) {
  Taps taps{axis.in, axis.out, 0, 1, axis.stride, {}, {}};
  for (int64_t t = 0; t < axis.kernel; ++t) {
    taps.offset.push_back(t * axis.dilation - axis.pad);
    taps.kernel.push_back(t);
  }
  return taps;
}

inline Taps grad_input_taps(const Axis& axis, int64_t residue) {
  const int64_t count = (axis.in - residue + axis.stride - 1) / axis.stride;
  Taps taps{axis.out, std::max<int64_t>(count, 0), residue, axis.stride, 1, {}, {}};
  for (int64_t t = axis.kernel - 1; t >= 0; --t) {
    const int64_t distance = residue + axis.pad - t * axis.dilation;
    if (distance % axis.stride != 0) continue;
    taps.offset.push_back(distance / axis.stride);
    taps.kernel.push_back(t);
  }
  return taps;
}

// Patches are packed row by row in chunks of kChunk products with a pitch known to the compiler; the 64 bytes between
// rows keep them from falling into the same cache sets, and take what a vector copy writes past the end. A chunk is
// also the chain of additions in the registers: chains are then added to each other, since one chain of all R would
// lose digits that the library's blocked sums keep.
constexpr int64_t kChunk = 64;
template <class A>
constexpr int64_t kPitch = kChunk + 64 / sizeof(A);

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// out[kTileRows][V * lanes] = patches[kTileRows][R] * weights[R][V * lanes]
template <class A, int V>
void multiply_tile(int64_t R, const A* __restrict patches, const A* __restrict weights, A* __restrict out) {
  constexpr int L = kLanes<A>;
  for (int64_t begin = 0; begin == 0 || begin < R; begin += kChunk, patches += kTileRows * kPitch<A>) {
    Vector<A> sum[kTileRows][V] = {};
    const int64_t count = std::min(kChunk, R - begin);
    for (int64_t r = 0; r < count; ++r, weights += V * L) {
      Vector<A> w[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) w[v] = load(weights + v * L);
#pragma GCC unroll 16
      for (int m = 0; m < kTileRows; ++m) {
        const A x = patches[m * kPitch<A> + r];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += x * w[v];
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        A* at = out + (m * V + v) * L;
        store(at, begin == 0 ? sum[m][v] : load(at) + sum[m][v]);
      }
  }
}

template <class A>
void multiply_tile(int vectors, int64_t R, const A* patches, const A* weights, A* out) {
  switch (vectors) {
    case 1:
      return multiply_tile<A, 1>(R, patches, weights, out);
    case 2:
      return multiply_tile<A, 2>(R, patches, weights, out);
#if defined(__aarch64__)
    case 3:
      return multiply_tile<A, 3>(R, patches, weights, out);
    case 4:
      return multiply_tile<A, 4>(R, patches, weights, out);
#endif
  }
}

// Output channels of one group in panels of kTileVectors vectors, the last one narrower where that is enough.
template <class A>
struct Panels {
  int64_t channels;
  static constexpr int64_t kWidth = kTileVectors * kLanes<A>;
  int64_t count() const { return (channels + kWidth - 1) / kWidth; }
  int vectors(int64_t panel) const {
    const int64_t left = channels - panel * kWidth;
    return static_cast<int>(left >= kWidth ? kTileVectors : round_up(left, kLanes<A>) / kLanes<A>);
  }
  int64_t used(int64_t panel) const { return std::min(kWidth, channels - panel * kWidth); }
  int64_t padded() const { return round_up(channels, kLanes<A>); }
};

// One pass over the destination (there are several only for grad_input with a stride).
template <class A>
struct Pass {
  Taps h, w;
  int64_t products;               // R = taps * source channels of a group
  std::vector<const A*> weights;  // of each group: panels of [R][vectors * lanes]
};

// Where the rows of a tile stand in the destination.
struct Row {
  int64_t n, h, w;
};

// Positions (samples x rows x columns) that are worked on together by one thread.
struct Blocks {
  int64_t samples, rows, columns;     // of one block
  int64_t along_n, along_h, along_w;  // how many blocks
  int64_t count() const { return along_n * along_h * along_w; }
};

// The size of a part where `total` is cut into as few parts of at most `most` as will do, all about the same.
inline int64_t share_evenly(int64_t total, int64_t most) {
  const int64_t parts = (total + most - 1) / most;
  return (total + parts - 1) / parts;
}

template <class A>
Blocks plan_blocks(const Pass<A>& pass, int64_t batch) {
  // Patches of a block take at most this many bytes, and a strip of so many positions about as much: L2 holds both.
  constexpr int64_t kPatchBytes = 512 * 1024;
  const int64_t tile_bytes = round_up(std::max<int64_t>(pass.products, 1), kChunk) * kTileRows * sizeof(A);
  int64_t target = std::clamp<int64_t>(kPatchBytes / tile_bytes, 1, 32) * kTileRows;
  const int64_t map = pass.h.count * pass.w.count;
  const int64_t share = (batch * map + 2 * thread_count() - 1) / (2 * thread_count());
  target = std::max<int64_t>(std::min(target, round_up(share, kTileRows)), kTileRows);
  Blocks b{1, 1, 1, 0, 0, 0};
  if (map <= target) {
    b.samples = std::min(batch, target / map), b.rows = pass.h.count, b.columns = pass.w.count;
  } else if (pass.w.count <= target) {
    b.rows = share_evenly(pass.h.count, target / pass.w.count), b.columns = pass.w.count;
  } else {
    b.columns = share_evenly(pass.w.count, target);
  }
  b.along_n = (batch + b.samples - 1) / b.samples;
  b.along_h = (pass.h.count + b.rows - 1) / b.rows;
  b.along_w = (pass.w.count + b.columns - 1) / b.columns;
  return b;
}

// Copies `count` products to place `at` of a patch row, whole vectors at a time.
template <class A>
inline void copy_products(A* row, int64_t at, const A* src, int64_t count) {
  constexpr int L = kLanes<A>;
  while (count > 0) {
    A* dst = row + at / kChunk * (kTileRows * kPitch<A>)+at % kChunk;
    const int64_t part = std::min(count, kChunk - at % kChunk);
    for (int64_t i = 0; i < part; i += L) store(dst + i, load(src + i));
    at += part, src += part, count -= part;
  }
}

// The part of the destination that a block covers.
struct Extent {
  int64_t n0, samples, h0, rows, w0, columns;
  int64_t positions() const { return samples * rows * columns; }
};

template <class A>
Extent extent_of(const Blocks& b, const Pass<A>& pass, int64_t batch, int64_t block) {
  const int64_t w = block % b.along_w, h = block / b.along_w % b.along_h, n = block / b.along_w / b.along_h;
  return {n * b.samples, std::min(b.samples, batch - n * b.samples),
          h * b.rows,    std::min(b.rows, pass.h.count - h * b.rows),
          w * b.columns, std::min(b.columns, pass.w.count - w * b.columns)};
}

// The strip that a block reads: [samples][rows][columns][channels], with zeros where the source has none.
template <class A, class Source>
void fill_strip(A* strip, const Extent& e, const Taps& h, const Taps& w, int64_t c0, int64_t channels,
                const Source& source) {
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns);
  const int64_t first_h = e.h0 * h.step + h.low(), first_w = e.w0 * w.step + w.low();
  const int64_t begin = std::clamp<int64_t>(-first_w, 0, columns);
  const int64_t end = std::clamp<int64_t>(w.source - first_w, begin, columns);
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < rows; ++r, strip += columns * channels) {
      const int64_t row = first_h + r;
      if (row < 0 || row >= h.source || begin == end) {
        std::memset(strip, 0, columns * channels * sizeof(A));
        continue;
      }
      std::memset(strip, 0, begin * channels * sizeof(A));
      source(strip + begin * channels, e.n0 + n, row, first_w + begin, first_w + end, c0, channels);
      std::memset(strip + end * channels, 0, (columns - end) * channels * sizeof(A));
    }
}

// Packs the patches of all positions of a block, a tile of kTileRows after another.
template <class A>
void pack_patches(A* patches, const A* strip, const Extent& e, const Pass<A>& pass, int64_t channels) {
  const Taps &h = pass.h, &w = pass.w;
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns);
  const int64_t tile = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const bool run = w.consecutive();
  const int64_t length = run ? static_cast<int64_t>(w.offset.size()) * channels : channels;
  int64_t i = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; ++c, ++i) {
        A* dst = patches + i / kTileRows * tile + i % kTileRows * kPitch<A>;
        const A* src = strip + ((n * rows + r * h.step) * columns + c * w.step) * channels;
        int64_t at = 0;
        for (int64_t offset_h : h.offset) {
          const A* line = src + (offset_h - h.low()) * columns * channels;
          if (run) {
            copy_products(dst, at, line, length), at += length;
          } else {
            for (int64_t offset_w : w.offset)
              copy_products(dst, at, line + (offset_w - w.low()) * channels, length), at += length;
          }
        }
      }
}

// Runs one pass: for each block, group, panel and tile, epilogue(tile, vectors, rows, row count, group, first channel,
// channel count). `source_channels` and `channels` are those of a group, in the source and in the destination.
template <class A, class Source, class Epilogue>
void convolve(const Pass<A>& pass, int64_t batch, int64_t groups, int64_t source_channels, int64_t channels,
              const Source& source, const Epilogue& epilogue) {
  if (batch * pass.h.count * pass.w.count == 0) return;
  const Blocks blocks = plan_blocks(pass, batch);
  const Panels<A> panels{channels};
  const int64_t positions = round_up(blocks.samples * blocks.rows * blocks.columns, kTileRows);
  const int64_t tile_size = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const int64_t strip_size =
      blocks.samples * pass.h.extent(blocks.rows) * pass.w.extent(blocks.columns) * source_channels;
  parallel(blocks.count(), [&](int64_t begin, int64_t end) {
    Scratch<A> strip(strip_size), patches(positions / kTileRows * tile_size), tile(kTileRows * panels.kWidth);
    std::vector<Row> rows(positions);
    patches.zero(positions / kTileRows * tile_size);  // so that rows past a block's end hold numbers
    for (int64_t block = begin; block < end; ++block) {
      const Extent e = extent_of(blocks, pass, batch, block);
      int64_t i = 0;
      for (int64_t n = 0; n < e.samples; ++n)
        for (int64_t r = 0; r < e.rows; ++r)
          for (int64_t c = 0; c < e.columns; ++c)
            rows[i++] = {e.n0 + n, pass.h.first + pass.h.spacing * (e.h0 + r),
                         pass.w.first + pass.w.spacing * (e.w0 + c)};
      for (int64_t g = 0; g < groups; ++g) {
        if (pass.products > 0) {
          fill_strip(static_cast<A*>(strip), e, pass.h, pass.w, g * source_channels, source_channels, source);
          pack_patches(static_cast<A*>(patches), static_cast<const A*>(strip), e, pass, source_channels);
        }
        const A* weights = pass.weights[g];
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const int vectors = panels.vectors(panel);
          for (int64_t first = 0; first < i; first += kTileRows) {
            multiply_tile<A>(vectors, pass.products, patches + first / kTileRows * tile_size, weights, tile);
            epilogue(static_cast<A*>(tile), vectors, &rows[first], std::min<int64_t>(kTileRows, i - first), g,
                     panel * panels.kWidth, panels.used(panel));
          }
          weights += pass.products * vectors * kLanes<A>;
        }
      }
    }
  });
}

// Stores a tile [kTileRows][vectors * lanes] to a tensor, channels c0 .. c0 + count of the given rows.
template <class A, class T>
void store_tile(const View& view, const A* tile, int vectors, const Row* rows, int64_t row_count, int64_t c0,
                int64_t count) {
  T* base = static_cast<T*>(view.data) + c0 * view.c;
  const int64_t pitch = vectors * kLanes<A>;
  int64_t at[kTileRows];
  for (int64_t m = 0; m < row_count; ++m) at[m] = rows[m].n * view.n + rows[m].h * view.h + rows[m].w * view.w;
  if (view.c == 1) {
    for (int64_t m = 0; m < row_count; ++m) narrow_copy(base + at[m], tile + m * pitch, count);
  } else {
    for (int64_t c = 0; c < count; ++c)
      for (int64_t m = 0; m < row_count; ++m) base[c * view.c + at[m]] = narrow<T>(tile[m * pitch + c]);
  }
}

template <class A>
using StoreTile = void (*)(const View&, const A*, int, const Row*, int64_t, int64_t, int64_t);

template <class A>
StoreTile<A> tile_storer(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> StoreTile<A> { return store_tile<A, decltype(element)>; });
}

// The weights (K, C/groups, kh, kw) of all groups as panels of [R][vectors * lanes]. Forward multiplies source channel
// c into destination channel k; grad_input (`transposed`) the other way round.
template <class A>
void pack_weights(A* packed, Pass<A>& pass, const View& weight, LoadRow<A> load, int64_t groups,
                  int64_t source_channels, int64_t channels, bool transposed) {
  const Panels<A> panels{channels};
  const int64_t group_size = pass.products * panels.padded();
  for (int64_t g = 0; g < groups; ++g) pass.weights.push_back(packed + g * group_size);
  View view = weight;  // load_row's channels are the destination's, its samples the source's
  if (!transposed) std::swap(view.n, view.c);
  parallel(groups * panels.count(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = i / panels.count(), panel = i % panels.count(), used = panels.used(panel);
      const int64_t width = panels.vectors(panel) * kLanes<A>, c0 = panel * panels.kWidth;
      const int64_t k0 = g * (transposed ? source_channels : channels);
      A* panel_start = packed + g * group_size + c0 * pass.products;
      for (int64_t s = 0; s < source_channels; ++s) {
        A* dst = panel_start + s * width;
        for (int64_t kh : pass.h.kernel)
          for (int64_t kw : pass.w.kernel) {
            load(dst, used, view, transposed ? k0 + s : s, kh, kw, kw + 1, transposed ? c0 : k0 + c0, used);
            for (int64_t c = used; c < width; ++c) dst[c] = 0;
            dst += source_channels * width;
          }
      }
    }
  });
}

template <class A>
int64_t packed_size(const Pass<A>& pass, int64_t groups, int64_t channels) {
  return groups * pass.products * Panels<A>{channels}.padded();
}

}  // namespace film::FILM_ISA
