// The convolution of forward and grad_input by Winograd's filtering, for kernels of 3 x 3 taps at a stride of 1: tiles
// of MH x MW results from NH x NW = (MH + 2) x (MW + 2) inputs, in which every point (one of NH * NW) is a matrix
// product of its own, [tiles x source channels] with [source channels x channels].
//
// A block of tiles goes through it at a time: strip -> transformed tiles -> products, a panel of channels at a time
// -> results, in the order of rows -> the epilogue. The transformed tiles and one panel's products stay in L2.
//
// Infinities and NaN would spread over their whole tile: where a result is not finite, the caller is told, and computes
// everything directly instead, so that they reach just the results that they belong to.
#pragma once

#include <atomic>

#include "convolve.h"
#include "winograd_transform.h"

namespace film::FILM_ISA {

constexpr int kWinogradTaps = 3;
constexpr int64_t kWinogradChain = 32;  // products added in one chain; chains are then added, to keep digits

// Whether a problem's shape is one for Winograd's filtering.
inline bool suits_winograd(const Problem& p) {
  constexpr int64_t kChannels = 16, kPositions = 64;  // with fewer, transforms cost more than products save
  const auto fits = [](const Axis& a) { return a.kernel == kWinogradTaps && a.stride == 1 && a.dilation == 1; };
  return p.dtype != DType::f64 && fits(p.h) && fits(p.w) && std::min(p.group_in(), p.group_out()) >= kChannels &&
         p.positions() >= kPositions;
}

// The sizes of tiles along both dimensions, and their transforms.
template <int MH, int MW>
struct Tiles {
  using H = Filtering<MH, kWinogradTaps>;
  using W = Filtering<MW, kWinogradTaps>;
  static constexpr int kPoints = H::N * W::N;
};

// Larger tiles save more products and lose more digits. Against plain PyTorch's own error (which may be doubled),
// float32 comes out at 1.6 with 2 x 4 results a tile in forward, but at more than 2 in its gradients, where 2 x 2 come
// to 1.2; 4 x 4 come to 3.5. Of the storage types of 16 bits, which are worked on in float32, none of this shows.
template <class F32, class Body>
bool with_tiles(const Problem& p, const Body& body) {
  return p.dtype == DType::f32 ? body(F32()) : body(Tiles<4, 4>());
}

// Rows of transformed tiles as multiply_points reads them: [point][group][chunk of a chain][row][kRowPitch].
struct TileRows {
  int64_t tiles, rows, groups, chunks;  // rows of a group, at most kTileRows
  static constexpr int64_t kRowPitch = kWinogradChain + 16;
  TileRows(int64_t count, int64_t channels)
      : tiles(count),
        rows(round_up(share_evenly(count, kTileRows), 2)),
        groups((count + rows - 1) / rows),
        chunks((channels + kWinogradChain - 1) / kWinogradChain) {}
  int64_t group() const { return chunks * rows * kRowPitch; }
  int64_t point() const { return groups * group(); }
  int64_t at(int64_t tile, int64_t channel) const {
    return tile / rows * group() + (channel / kWinogradChain * rows + tile % rows) * kRowPitch +
           channel % kWinogradChain;
  }
};

// out[ROWS][V * lanes] = rows[ROWS][channels] * weights[channels][V * lanes]
template <int ROWS, int V>
void multiply_rows(int64_t channels, const float* __restrict rows, const float* __restrict weights,
                   float* __restrict out) {
  constexpr int L = kLanes<float>;
  for (int64_t begin = 0; begin < channels; begin += kWinogradChain, rows += ROWS * TileRows::kRowPitch) {
    Vector<float> sum[ROWS][V] = {};
    const int64_t count = std::min(kWinogradChain, channels - begin);
    for (int64_t c = 0; c < count; ++c, weights += V * L) {
      Vector<float> w[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) w[v] = load(weights + v * L);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; ++m) {
        const float x = rows[m * TileRows::kRowPitch + c];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += x * w[v];
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* at = out + (m * V + v) * L;
        store(at, begin == 0 ? sum[m][v] : load(at) + sum[m][v]);
      }
  }
}

using MultiplyRows = void (*)(int64_t, const float*, const float*, float*);

template <int V, int ROWS = kTileRows>
MultiplyRows rows_multiplier(int64_t rows) {
  static_assert(ROWS % 2 == 0);
  if constexpr (ROWS > 2)
    if (rows < ROWS) return rows_multiplier<V, ROWS - 2>(rows);
  return multiply_rows<ROWS, V>;
}

inline MultiplyRows rows_multiplier(int64_t rows, int vectors) {
  switch (vectors) {
    case 1:
      return rows_multiplier<1>(rows);
#if defined(__aarch64__)
    case 3:
      return rows_multiplier<3>(rows);
    case 4:
      return rows_multiplier<4>(rows);
#endif
    default:
      return rows_multiplier<2>(rows);
  }
}

// The transformed weights of a pass: for each group and panel [point][source channel][vectors * lanes].
template <class T>
class WinogradWeights {
 public:
  // `transposed` as in pack_weights
  WinogradWeights(const Pass<float>& pass, const View& weight, LoadRow<float> load, int64_t groups,
                  int64_t source_channels, int64_t channels, bool transposed)
      : sources_(source_channels),
        panels_{channels},
        group_size_(T::kPoints * source_channels * panels_.padded()),
        data_(groups * group_size_) {
    View view = weight;  // load_row's channels are the destination's, its samples the source's
    if (!transposed) std::swap(view.n, view.c);
    parallel(groups * panels_.count() * sources_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t s = i % sources_, panel = i / sources_ % panels_.count(), g = i / sources_ / panels_.count();
        const int64_t c0 = panel * panels_.kWidth, first = g * (transposed ? source_channels : channels);
        transform(pass, view, load, transposed ? first + s : s, (transposed ? 0 : first) + c0, g, panel, s);
      }
    });
  }

  const float* at(int64_t group, int64_t panel) const {
    return data_ + group * group_size_ + panel * panels_.kWidth * T::kPoints * sources_;
  }

 private:
  void transform(const Pass<float>& pass, const View& view, LoadRow<float> load_taps, int64_t n, int64_t c0, int64_t g,
                 int64_t panel, int64_t source) {
    constexpr int L = kLanes<float>, R = kWinogradTaps;
    const int64_t used = panels_.used(panel), width = panels_.vectors(panel) * L;
    float taps[R][R][Panels<float>::kWidth] = {};
    for (int h = 0; h < R; ++h)
      for (int w = 0; w < R; ++w)
        load_taps(taps[h][w], used, view, n, pass.h.kernel[h], pass.w.kernel[w], pass.w.kernel[w] + 1, c0, used);
    float* out = const_cast<float*>(at(g, panel)) + source * width;
    for (int64_t v = 0; v < width; v += L) {
      Vector<float> filter[R][R], points[T::H::N][T::W::N];
      for (int h = 0; h < R; ++h)
        for (int w = 0; w < R; ++w) filter[h][w] = load(taps[h][w] + v);
      transform_2d(
          filter, points, [](const auto& in, auto& out) { T::H::filter(in, out); },
          [](const auto& in, auto& out) { T::W::filter(in, out); });
      for (int h = 0; h < T::H::N; ++h)
        for (int w = 0; w < T::W::N; ++w) store(out + (h * T::W::N + w) * sources_ * width + v, points[h][w]);
    }
  }

  int64_t sources_;
  Panels<float> panels_;
  int64_t group_size_;
  Scratch<float> data_;
};

// Blocks whose rows and columns are whole tiles, but for the last ones.
template <class T>
Blocks plan_winograd_blocks(const Pass<float>& pass, int64_t batch, int64_t source_channels) {
  constexpr int64_t kTransformedBytes = 512 * 1024;
  constexpr int64_t MH = T::H::M, MW = T::W::M;
  const int64_t tiles_h = (pass.h.count + MH - 1) / MH, tiles_w = (pass.w.count + MW - 1) / MW;
  const int64_t map = tiles_h * tiles_w;
  const int64_t most = kTransformedBytes / static_cast<int64_t>(T::kPoints * source_channels * sizeof(float));
  const int64_t target = std::max<int64_t>(std::min(most, batch * map / thread_count()), kTileRows);
  // Parts that threads have as many of, where that can be.
  const auto share = [](int64_t total, int64_t most, int64_t times) {
    int64_t parts = (total + most - 1) / most;
    for (int64_t more = parts; more < std::min(parts + thread_count(), total + 1); ++more)
      if (more * times % thread_count() == 0) {
        parts = more;
        break;
      }
    return (total + parts - 1) / parts;
  };
  Blocks b{1, 1, 1, 0, 0, 0};
  if (map <= target) {
    b.samples = share(batch, target / map, 1), b.rows = tiles_h * MH, b.columns = tiles_w * MW;
  } else if (tiles_w <= target) {
    b.rows = share(tiles_h, target / tiles_w, batch) * MH, b.columns = tiles_w * MW;
  } else {
    b.rows = MH, b.columns = share_evenly(tiles_w, target) * MW;
  }
  b.along_n = (batch + b.samples - 1) / b.samples;
  b.along_h = (pass.h.count + b.rows - 1) / b.rows;
  b.along_w = (pass.w.count + b.columns - 1) / b.columns;
  return b;
}

// B^T d B of a tile, a vector of channels, to points `step` apart; its rows and columns in the strip are `line` and
// `pixel` apart.
template <class T>
inline void transform_tile(float* points, int64_t step, const float* corner, int64_t line, int64_t pixel) {
  constexpr int NH = T::H::N, NW = T::W::N;
  Vector<float> d[NH][NW], out[NH][NW];
#pragma GCC unroll 8
  for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) d[i][j] = load(corner + i * line + j * pixel);
  transform_2d(
      d, out, [](const auto& in, auto& out) { T::H::data(in, out); },
      [](const auto& in, auto& out) { T::W::data(in, out); });
#pragma GCC unroll 8
  for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) store(points + (i * NW + j) * step, out[i][j]);
}

// The transformed tiles of a block, from its strip.
template <class T>
void transform_tiles(float* transformed, const TileRows& layout, const float* strip, const Extent& e,
                     int64_t channels) {
  const int64_t line = (e.columns + kWinogradTaps - 1) * channels, map = (e.rows + kWinogradTaps - 1) * line;
  int64_t tile = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t h = 0; h < e.rows; h += T::H::M)
      for (int64_t w = 0; w < e.columns; w += T::W::M, ++tile)
        for (int64_t c = 0; c < channels; c += kLanes<float>)
          transform_tile<T>(transformed + layout.at(tile, c), layout.point(),
                            strip + n * map + h * line + w * channels + c, line, channels);
}

// A^T m A of every tile of a block, to results[position][vectors * lanes], the positions of `e` one row after another.
// Returns whether all are finite.
template <class T>
bool gather_results(float* results, const float* products, const TileRows& layout, const Extent& e, int64_t width) {
  constexpr int L = kLanes<float>, NH = T::H::N, NW = T::W::N, MH = T::H::M, MW = T::W::M;
  const int64_t point = layout.groups * layout.rows * width;
  Vector<float> zero_or_nan{};
  int64_t tile = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t h = 0; h < e.rows; h += MH)
      for (int64_t w = 0; w < e.columns; w += MW, ++tile) {
        const int64_t high = std::min<int64_t>(MH, e.rows - h), wide = std::min<int64_t>(MW, e.columns - w);
        float* out = results + ((n * e.rows + h) * e.columns + w) * width;
        for (int64_t v = 0; v < width; v += L) {
          Vector<float> m[NH][NW], y[MH][MW];
#pragma GCC unroll 8
          for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < NW; ++j) m[i][j] = load(products + (i * NW + j) * point + tile * width + v);
          transform_2d(
              m, y, [](const auto& in, auto& out) { T::H::results(in, out); },
              [](const auto& in, auto& out) { T::W::results(in, out); });
#pragma GCC unroll 4
          for (int i = 0; i < MH; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < MW; ++j) {
              zero_or_nan += 0 * y[i][j];
              if (i < high && j < wide) store(out + (i * e.columns + j) * width + v, y[i][j]);
            }
        }
      }
  for (int lane = 0; lane < L; ++lane)
    if (zero_or_nan[lane] != 0) return false;
  return true;
}

// As convolve, for a pass of 3 x 3 taps; returns whether all sums are finite. Where not, some epilogues did not run.
template <class T, class Source, class Epilogue>
bool convolve_winograd(const Pass<float>& pass, const WinogradWeights<T>& weights, int64_t batch, int64_t groups,
                       int64_t source_channels, int64_t channels, const Source& source, const Epilogue& epilogue) {
  const Blocks blocks = plan_winograd_blocks<T>(pass, batch, source_channels);
  const Panels<float> panels{channels};
  const int64_t positions = blocks.samples * blocks.rows * blocks.columns;
  const TileRows most(positions / (T::H::M * T::W::M), source_channels);
  const int64_t margin = kWinogradTaps - 1;
  const int64_t strip_size = blocks.samples * (blocks.rows + margin) * (blocks.columns + margin) * source_channels;
  std::atomic<bool> finite{true};
  parallel(blocks.count(), [&](int64_t begin, int64_t end) {
    Scratch<float> strip(strip_size), transformed(T::kPoints * most.point());
    Scratch<float> products(T::kPoints * most.groups * most.rows * panels.kWidth), results(positions * panels.kWidth);
    std::vector<Row> rows(positions);
    for (int64_t block = begin; block < end && finite; ++block) {
      const Extent e = extent_of(blocks, pass, batch, block);
      Extent whole = e;  // tiles
      whole.rows = round_up(e.rows, T::H::M), whole.columns = round_up(e.columns, T::W::M);
      const TileRows layout(whole.positions() / (T::H::M * T::W::M), source_channels);
      int64_t i = 0;
      for (int64_t n = 0; n < e.samples; ++n)
        for (int64_t r = 0; r < e.rows; ++r)
          for (int64_t c = 0; c < e.columns; ++c) rows[i++] = {e.n0 + n, e.h0 + r, e.w0 + c};
      for (int64_t g = 0; g < groups; ++g) {
        fill_strip(static_cast<float*>(strip), whole, pass.h, pass.w, g * source_channels, source_channels, source);
        transform_tiles<T>(transformed, layout, strip, whole, source_channels);
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const int vectors = panels.vectors(panel);
          const int64_t width = vectors * kLanes<float>;
          const MultiplyRows multiply = rows_multiplier(layout.rows, vectors);
          for (int64_t point = 0; point < T::kPoints; ++point)
            for (int64_t group = 0; group < layout.groups; ++group)
              multiply(source_channels, transformed + point * layout.point() + group * layout.group(),
                       weights.at(g, panel) + point * source_channels * width,
                       products + (point * layout.groups + group) * layout.rows * width);
          if (!gather_results<T>(results, products, layout, e, width)) finite = false;
          for (int64_t first = 0; first < i; first += kTileRows)
            epilogue(results + first * width, vectors, &rows[first], std::min<int64_t>(kTileRows, i - first), g,
                     panel * panels.kWidth, panels.used(panel));
        }
      }
    }
  });
  return finite;
}

}  // namespace film::FILM_ISA
