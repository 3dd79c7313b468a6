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
constexpr int64_t kWinogradChain = kShortChunk;  // products added in one chain; chains are then added, to keep digits

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
// float32 comes out at 1.4 in forward with 2 x 4 results a tile, but at about 2 in dx, at 2.7 in dW where sums are
// short, and at more than 2 in groups, for which plain PyTorch takes shorter sums; 2 x 2 come to 1.1, and 1.6 in
// groups; 4 x 4 would come to 2.4. Of the storage types of 16 bits, which are worked on in float32, none of this shows.
template <class F32, class Body>
bool with_tiles(const Problem& p, const Body& body) {
  if (p.dtype != DType::f32) return body(Tiles<4, 4>());
  return p.groups > 1 ? body(Tiles<2, 2>()) : body(F32());
}

// The distance between points that hold so many elements each: some more, so that the same place of every point, which
// are read and written together, does not fall into the same cache sets.
inline int64_t apart(int64_t elements) { return elements + 64 / static_cast<int64_t>(sizeof(float)); }

// Where transformed tiles stand: for each point, tiles of the register tile's rows, in chunks as it reads them.
struct TileRows {
  int64_t rows, groups, chunks;  // rows of a group, at most kTileRows
  static constexpr int64_t kRowPitch = kPitch<float, kWinogradChain>;
  TileRows(int64_t tiles, int64_t channels)
      : rows(tile_rows(tiles)),
        groups((tiles + rows - 1) / rows),
        chunks((channels + kWinogradChain - 1) / kWinogradChain) {}
  int64_t group() const { return chunks * kTileRows * kRowPitch; }
  int64_t point() const { return apart(groups * group()); }
  int64_t at(int64_t tile, int64_t channel) const {
    return tile / rows * group() + (channel / kWinogradChain * kTileRows + tile % rows) * kRowPitch +
           channel % kWinogradChain;
  }
};

// G g G^T of a vector of filters, whose taps are `tap_step` apart, to points `step` apart.
template <class T>
inline void transform_filter(float* points, int64_t step, const float* taps, int64_t tap_step) {
  constexpr int R = kWinogradTaps, NH = T::H::N, NW = T::W::N;
  Vector<float> filter[R][R], out[NH][NW];
  for (int h = 0; h < R; ++h)
    for (int w = 0; w < R; ++w) filter[h][w] = load(taps + (h * R + w) * tap_step);
  transform_2d(
      filter, out, [](const auto& in, auto& out) { T::H::filter(in, out); },
      [](const auto& in, auto& out) { T::W::filter(in, out); });
  for (int h = 0; h < NH; ++h)
    for (int w = 0; w < NW; ++w) store(points + (h * NW + w) * step, out[h][w]);
}

// The transformed weights of a pass: for each group and panel [point][source channel][vectors * lanes].
template <class T>
class WinogradWeights {
 public:
  // `transposed` as pack_weights has it
  WinogradWeights(const Pass<float>& pass, const Problem& p, const View& weight, bool transposed)
      : sources_(transposed ? p.group_out() : p.group_in()),
        panels_{transposed ? p.group_in() : p.group_out()},
        data_(p.groups * panels_.count() * panel_size()) {
    Pass<float> taps = pass;
    taps.products = kWinogradTaps * kWinogradTaps * sources_;
    Scratch<float> packed(packed_size(taps, p.groups, panels_.channels));
    pack_weights<float>(packed, taps, p, weight, transposed);
    parallel(p.groups * panels_.count() * sources_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t source = i % sources_, panel = i / sources_ % panels_.count(), g = i / sources_ / panels_.count();
        const int64_t width = panels_.vectors(panel) * kLanes<float>;
        float* points = data_ + (g * panels_.count() + panel) * panel_size() + source * width;
        const float* from = taps.weights[g] + panel * panels_.kWidth * taps.products + source * width;
        for (int64_t v = 0; v < width; v += kLanes<float>)
          transform_filter<T>(points + v, point(), from + v, sources_ * width);
      }
    });
  }

  // [source channel][vectors * lanes] of a panel
  const float* at(int64_t group, int64_t panel, int64_t point_number) const {
    return data_ + (group * panels_.count() + panel) * panel_size() + point_number * point();
  }

 private:
  int64_t point() const { return apart(sources_ * panels_.kWidth); }
  int64_t panel_size() const { return T::kPoints * point(); }

  int64_t sources_;
  Panels<float> panels_;
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
  if (map <= target) return blocks_of(share(batch, target / map, 1), tiles_h * MH, tiles_w * MW, batch, pass.h, pass.w);
  if (tiles_w <= target)
    return blocks_of(1, share(tiles_h, target / tiles_w, batch) * MH, tiles_w * MW, batch, pass.h, pass.w);
  return blocks_of(1, MH, share_evenly(tiles_w, target) * MW, batch, pass.h, pass.w);
}

// A block's extent up to the end of its last tiles.
template <class T>
Extent whole_tiles(const Extent& e) {
  Extent whole = e;
  whole.rows = round_up(e.rows, T::H::M), whole.columns = round_up(e.columns, T::W::M);
  return whole;
}

// Whether all lanes are 0, as products of 0 with finite numbers are.
inline bool is_zero(Vector<float> v) {
  for (int lane = 0; lane < kLanes<float>; ++lane)
    if (v[lane] != 0) return false;
  return true;
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
  const int64_t point = apart(layout.groups * layout.rows * width);
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
  return is_zero(zero_or_nan);
}

// As convolve, for a pass of 3 x 3 taps; returns whether all sums are finite. Where not, some epilogues did not run.
template <class T, class Source, class Epilogue>
bool convolve_winograd(const Pass<float>& pass, const WinogradWeights<T>& weights, int64_t batch, int64_t groups,
                       int64_t source_channels, int64_t channels, const Source& source, const Epilogue& epilogue) {
  const Blocks blocks = plan_winograd_blocks<T>(pass, batch, source_channels);
  const Panels<float> panels{channels};
  const int64_t positions = blocks.positions();
  const TileRows most(positions / (T::H::M * T::W::M), source_channels);
  const int64_t margin = kWinogradTaps - 1;
  const int64_t strip_size = blocks.samples * (blocks.rows + margin) * (blocks.columns + margin) * source_channels;
  std::atomic<bool> finite{true};
  parallel(blocks.blocks(), [&](int64_t begin, int64_t end) {
    Scratch<float> strip(strip_size), transformed(T::kPoints * most.point());
    Scratch<float> products(T::kPoints * apart(most.groups * most.rows * panels.kWidth)),
        results(positions * panels.kWidth);
    std::vector<Row> rows(positions);
    for (int64_t block = begin; block < end && finite; ++block) {
      const Extent e = extent_of(blocks, pass, batch, block);
      const Extent whole = whole_tiles<T>(e);
      const TileRows layout(whole.positions() / (T::H::M * T::W::M), source_channels);
      const int64_t count = list_rows(rows, e, pass);
      for (int64_t g = 0; g < groups; ++g) {
        fill_strip(static_cast<float*>(strip), whole, pass.h, pass.w, g * source_channels, source_channels, source);
        transform_tiles<T>(transformed, layout, strip, whole, source_channels);
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const int vectors = panels.vectors(panel);
          const int64_t width = vectors * kLanes<float>;
          const auto multiply = tile_multiplier<float, kWinogradChain>(vectors, layout.rows);
          for (int64_t point = 0; point < T::kPoints; ++point)
            for (int64_t group = 0; group < layout.groups; ++group)
              multiply(source_channels, transformed + point * layout.point() + group * layout.group(),
                       weights.at(g, panel, point),
                       products + point * apart(layout.groups * layout.rows * width) + group * layout.rows * width);
          if (!gather_results<T>(results, products, layout, e, width)) finite = false;
          for (int64_t first = 0; first < count; first += kTileRows)
            epilogue(results + first * width, vectors, &rows[first], std::min<int64_t>(kTileRows, count - first), g,
                     panel * panels.kWidth, panels.used(panel));
        }
      }
    }
  });
  return finite;
}

}  // namespace film::FILM_ISA
