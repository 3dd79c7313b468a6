// The convolution of forward and grad_input by Winograd's filtering, for kernels of 3 x 3 taps, or of 3 or 5 along a
// row, at a stride of 1: tiles of MH x MW results from NH x NW = (MH + RH - 1) x (MW + RW - 1) inputs, in which every
// point (one of NH * NW) is a matrix product of its own, [tiles x source channels] with [source channels x channels].
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

// The sizes of tiles along both dimensions, and their transforms.
template <class HEIGHT, class WIDTH>
struct Tiles {
  using H = HEIGHT;
  using W = WIDTH;
  static constexpr int kPoints = H::N * W::N;
};
template <int MH, int MW>
using Square = Tiles<Filtering<MH, 3>, Filtering<MW, 3>>;  // for 3 x 3 taps
template <int MW, int R>
using Line = Tiles<Filtering<1, 1>, Filtering<MW, R>>;  // for R taps along a row

// Larger tiles save more products and lose more digits. Against plain PyTorch's own error (which may be doubled),
// float32 comes out at 1.3 to 1.5 in forward with 2 x 4 results a tile, and at 2.4 with 4 x 4. Of the gradients, dW is
// at 2.7 with 2 x 4 where sums are short and at 1.4 where they are long, and dx at 1.5 to 1.9 in a tile that keeps more
// digits, but at 2.9 of small problems, for which plain PyTorch takes shorter sums, as in groups; 2 x 2 come to 1.1,
// and 1.6 in groups. Along a row, dW is at 2.4 with 4 results. Of the storage types of 16 bits, which are worked on in
// float32, none of this shows.
//
// Calls body(tiles) with those of a problem's shape; in float32 with SQUARE for 3 x 3 taps, LINE3 and LINE5 along a
// row. false where the shape, or void in its place, is not one for Winograd's filtering.
template <class SQUARE, class LINE3, class LINE5, class Body>
bool with_tiles(const Problem& p, const Body& body) {
  const auto has = [](const Axis& a, int64_t taps) {
    return a.kernel == taps && a.stride == 1 && (taps == 1 || a.dilation == 1);
  };
  // with fewer, transforms cost more than products save
  const auto has_enough = [&](int64_t channels, int64_t positions) {
    return std::min(p.group_in(), p.group_out()) >= channels && p.positions() >= positions;
  };
  if (p.dtype == DType::f64) return false;
  const bool exact = p.dtype == DType::f32, one_group = p.groups == 1;
  if (has(p.h, 3) && has(p.w, 3) && has_enough(16, 64)) {
    if (!exact) return body(Square<4, 4>());
    return one_group ? body(SQUARE()) : body(Square<2, 2>());
  }
  if (!has(p.h, 1) || !has_enough(64, 128) || (exact && !one_group)) return false;
  if (has(p.w, 3)) {
    if (!exact) return body(Line<4, 3>());
    if constexpr (!std::is_void_v<LINE3>) return body(LINE3());
  }
  if (has(p.w, 5)) {
    if (!exact) return body(Line<2, 5>());
    if constexpr (!std::is_void_v<LINE5>) return body(LINE5());
  }
  return false;
}

// The distance between points that hold so many elements each: some more, so that the same place of every point, which
// are read and written together, does not fall into the same cache sets.
inline int64_t apart(int64_t elements) { return elements + 64 / static_cast<int64_t>(sizeof(float)); }

// How points are multiplied: in a register tile of so many rows at most, made for a number of vectors and rows; and
// whether the weights are transformed in double.
struct PointTile {
  int64_t most_rows;
  MultiplyTile<float> (*multiplier)(int vectors, int64_t rows);
  bool in_double;
};
constexpr PointTile kFastTile{kTileRows, tile_multiplier<float, kShortChunk>, false};
constexpr PointTile kPreciseTile{kPreciseRows, precise_tile_multiplier, true};

// Where transformed tiles stand: for each point, tiles of the register tile's rows, in chunks as it reads them.
struct TileRows {
  int64_t most_rows, rows, groups, chunks;  // rows of a group
  static constexpr int64_t kRowPitch = kPitch<float, kShortChunk>;
  TileRows(int64_t tile_rows, int64_t tiles, int64_t channels)
      : most_rows(tile_rows),
        rows(share_evenly(tiles, most_rows)),
        groups((tiles + rows - 1) / rows),
        chunks((channels + kShortChunk - 1) / kShortChunk) {}
  int64_t group() const { return chunks * most_rows * kRowPitch; }
  int64_t point() const { return apart(groups * group()); }
  int64_t at(int64_t tile, int64_t channel) const {
    return tile / rows * group() + (channel / kShortChunk * most_rows + tile % rows) * kRowPitch +
           channel % kShortChunk;
  }
};

// A vector of A from as many floats, and back.
template <class A>
inline Vector<A> load_floats(const float* p) {
  typedef float Floats __attribute__((vector_size(kLanes<A> * sizeof(float))));
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vector<A>);
}
template <class A>
inline void store_floats(float* p, Vector<A> v) {
  typedef float Floats __attribute__((vector_size(kLanes<A> * sizeof(float))));
  const Floats rounded = __builtin_convertvector(v, Floats);
  std::memcpy(p, &rounded, sizeof rounded);
}

// G g G^T of a vector of filters, whose taps are `tap_step` apart, to points `step` apart. Where A is double, nothing
// but the results is rounded.
template <class T, class A = float>
inline void transform_filter(float* points, int64_t step, const float* taps, int64_t tap_step) {
  constexpr int RH = T::H::R, RW = T::W::R, NH = T::H::N, NW = T::W::N, L = kLanes<A>;
  for (int lane = 0; lane < kLanes<float>; lane += L) {
    Vector<A> filter[RH][RW], out[NH][NW];
    for (int h = 0; h < RH; ++h)
      for (int w = 0; w < RW; ++w) filter[h][w] = load_floats<A>(taps + (h * RW + w) * tap_step + lane);
    transform_2d(
        filter, out, [](const auto& in, auto& out) { T::H::filter(in, out); },
        [](const auto& in, auto& out) { T::W::filter(in, out); });
    for (int h = 0; h < NH; ++h)
      for (int w = 0; w < NW; ++w) store_floats<A>(points + (h * NW + w) * step + lane, out[h][w]);
  }
}

// The transformed weights of a pass: for each group and panel [point][source channel][vectors * lanes].
template <class T>
class WinogradWeights {
 public:
  // `transposed` as pack_weights has it
  WinogradWeights(const PointTile& tile, const Pass<float>& pass, const Problem& p, const View& weight, bool transposed)
      : sources_(transposed ? p.group_out() : p.group_in()),
        panels_{transposed ? p.group_in() : p.group_out()},
        data_(p.groups * panels_.count() * panel_size()) {
    constexpr int64_t L = kLanes<float>, kSources = 16;  // source channels of a panel that go through it together
    const auto transform = tile.in_double ? transform_filter<T, double> : transform_filter<T>;
    const int64_t cuts = (sources_ + kSources - 1) / kSources;
    with_storage<float>(p.dtype, [&](auto element) {
      const LanePacker<float, decltype(element)> pack(pass, weight, p.h, p.w, kSources, transposed);
      parallel(p.groups * panels_.count() * cuts, [&](int64_t begin, int64_t end) {
        Scratch<float> taps(T::H::R * T::W::R * kSources * panels_.kWidth);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t s0 = i % cuts * kSources, panel = i / cuts % panels_.count(), g = i / cuts / panels_.count();
          const int64_t width = panels_.vectors(panel) * L, count = std::min(kSources, sources_ - s0);
          float* points = data_ + (g * panels_.count() + panel) * panel_size() + s0 * width;
          for (int64_t v = 0; v < width; v += L) {
            const int64_t c = panel * panels_.kWidth + v;
            pack(taps + v, width, g * (transposed ? 0 : panels_.channels) + c, std::min(L, panels_.channels - c),
                 g * (transposed ? sources_ : 0) + s0, 0, count);
          }
          for (int64_t at = 0; at < count * width; at += L)
            transform(points + at, point(), taps + at, kSources * width);
        }
      });
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
  const int64_t line = (e.columns + T::W::R - 1) * channels, map = (e.rows + T::H::R - 1) * line;
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

// As convolve, for a pass of T's taps; returns whether all sums are finite. Where not, some epilogues did not run.
template <class T, class Source, class Epilogue>
bool convolve_winograd(const PointTile& tile, const Pass<float>& pass, const WinogradWeights<T>& weights, int64_t batch,
                       int64_t groups, int64_t source_channels, int64_t channels, const Source& source,
                       const Epilogue& epilogue) {
  const Blocks blocks = plan_winograd_blocks<T>(pass, batch, source_channels);
  const Panels<float> panels{channels};
  const int64_t positions = blocks.positions();
  const TileRows most(tile.most_rows, positions / (T::H::M * T::W::M), source_channels);
  const int64_t strip_size =
      blocks.samples * (blocks.rows + T::H::R - 1) * (blocks.columns + T::W::R - 1) * source_channels;
  std::atomic<bool> finite{true};
  parallel(blocks.blocks(), [&](int64_t begin, int64_t end) {
    Scratch<float> strip(strip_size), transformed(T::kPoints * most.point());
    Scratch<float> products(T::kPoints * apart(most.groups * most.rows * panels.kWidth)),
        results(positions * panels.kWidth);
    std::vector<Row> rows(positions);
    for (int64_t block = begin; block < end && finite; ++block) {
      const Extent e = extent_of(blocks, pass, batch, block);
      const Extent whole = whole_tiles<T>(e);
      const TileRows layout(tile.most_rows, whole.positions() / (T::H::M * T::W::M), source_channels);
      const int64_t count = list_rows(rows, e, pass);
      for (int64_t g = 0; g < groups; ++g) {
        fill_strip(static_cast<float*>(strip), whole, pass.h, pass.w, g * source_channels, source_channels, source);
        transform_tiles<T>(transformed, layout, strip, whole, source_channels);
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const int vectors = panels.vectors(panel);
          const int64_t width = vectors * kLanes<float>;
          const auto multiply = tile.multiplier(vectors, layout.rows);
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
