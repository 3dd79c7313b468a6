// The convolution of forward and grad_input by Winograd's filtering, for kernels of 3, 5 or 7 taps at a stride of 1
// (winograd_tiles.h). A tile of MH x MW results is made from NH x NW = (MH + RH - 1) x (MW + RW - 1) inputs, and each
// of the NH * NW points is a matrix product of its own, [tiles x source channels] times [source channels x channels].
//
// A block of tiles goes all the way at a time: its strip is loaded and its tiles are transformed; then, for one panel
// of channels after another, they are multiplied, and the results are transformed back, put in the order of positions
// and given to the epilogue. The transformed tiles and one panel's products stay in L2.
//
// Infinities and NaN would spread over their whole tile. Where a result is not finite the caller is told, and computes
// everything directly instead, so that they reach only the results that they belong to.
#pragma once

#include <algorithm>

#include "winograd_weights.h"

namespace film::FILM_ISA {

// Where the transformed tiles of a block stand, and the products made of them.
//
// The register tile multiplies as many Winograd tiles at a time as it has rows: a stack of them. The tiles are numbered
// through, whatever rows and samples they are from, and stand stack after stack; in a stack as patches do, chunk by
// chunk of channels, and all of it once for every point:
//
//     point 0                                                            point 1
//     | stack 0                            | stack 1         | ...       | stack 0 ...
//     | chunk 0            | chunk 1       |
//     | tile 0 | tile 1 .. | tile 0 | ..   |        a tile has kShortChunk channels in a chunk
//
// A large kernel is cut into pieces, and piece (i, j) multiplies, for tile (h, w), the transformed inputs of tile
// (h + i, w + j). So that these are whole stacks too:
// - Down, where the kernel has several pieces that way, no stack has tiles of two rows: the tiles of one row of tiles,
//   of all samples, are a band with stacks of its own, and piece i reads the stacks of band h + i. The bands go on as
//   far as the last piece reads. Where there is one piece that way, all tiles are one band.
// - To the right, a stack would begin in the middle of another. So the tiles stand there once more for each piece that
//   way: copy j is numbered from tile j of each row on.
struct TileStacks {
  static constexpr int64_t kRowPitch = kPitch<float, kShortChunk>;

  template <class T>
  TileStacks(const PointTile& tile, const Extent& e, const Pieces<T>& pieces, int64_t channels)
      : high(e.rows / T::H::M),
        wide(e.columns / T::W::M),
        row_bands(pieces.along_h > 1),
        most_tiles(tile.most_rows),
        filled(e.samples * wide * (row_bands ? 1 : high)),
        tiles(share_evenly(filled, most_tiles)),
        band_stacks((filled + tiles - 1) / tiles),
        bands(row_bands ? high + pieces.along_h - 1 : 1),
        copies(pieces.along_w),
        chunks((channels + kShortChunk - 1) / kShortChunk) {}

  // Elements from one stack, copy or point to the next.
  int64_t stack() const { return chunks * most_tiles * kRowPitch; }
  int64_t copy() const { return bands * band_stacks * stack(); }
  int64_t point() const { return apart(copies * copy()); }
  // Where a stack's tiles have a chunk of channels, the one that begins with that channel.
  int64_t chunk(int64_t channel) const { return channel / kShortChunk * most_tiles * kRowPitch; }
  // The number of tile (h, w) of a sample.
  int64_t number(int64_t n, int64_t h, int64_t w) const {
    return row_bands ? h * band_stacks * tiles + n * wide + w : (n * high + h) * wide + w;
  }
  // Where a channel of a tile stands, from its copy and point on.
  int64_t at(int64_t number, int64_t channel) const {
    return number / tiles * stack() + (channel / kShortChunk * most_tiles + number % tiles) * kRowPitch +
           channel % kShortChunk;
  }
  // Zeros to the places of each band's last stack that no tile has: they are multiplied as the others are, and
  // subnormal numbers, which memory may have held, take many times as long.
  void clear_empty_places(float* transformed, int64_t points) const {
    for (int64_t point = 0; point < points; ++point)
      for (int64_t band = 0; band < copies * bands; ++band)
        for (int64_t tile = filled; tile < band_stacks * tiles; ++tile)
          for (int64_t chunk = 0; chunk < chunks; ++chunk)
            std::fill_n(
                transformed + point * this->point() + band * band_stacks * stack() + at(tile, chunk * kShortChunk),
                kShortChunk, 0.f);
  }
  // The products are [point][tile][width], of the tiles of the result alone; all pieces add to the same ones.
  int64_t result_stacks() const { return band_stacks * (row_bands ? high : 1); }
  int64_t result_point(int64_t width) const { return apart(result_stacks() * tiles * width); }

  int64_t high, wide;   // rows and columns of tiles in the result
  bool row_bands;       // whether each row of tiles is a band
  int64_t most_tiles;   // of a stack: places for them
  int64_t filled;       // tiles of a band
  int64_t tiles;        // of a stack, but for a band's last one, which may have fewer
  int64_t band_stacks;  // stacks of a band
  int64_t bands, copies, chunks;
};

// Blocks of whole tiles; the last ones may reach over the edge.
template <class T>
Blocks plan_winograd_blocks(const Pass<float>& pass, int64_t batch, int64_t source_channels) {
  constexpr int64_t kTransformedBytes = 512 * 1024;
  constexpr int64_t MH = T::H::M, MW = T::W::M;
  const int64_t tiles_h = (pass.h.count + MH - 1) / MH, tiles_w = (pass.w.count + MW - 1) / MW;
  const int64_t map = tiles_h * tiles_w;
  const int64_t most = kTransformedBytes / static_cast<int64_t>(T::kPoints * source_channels * sizeof(float));
  const int64_t target = std::max<int64_t>(std::min(most, batch * map / thread_count()), kTileRows);
  if (map <= target)
    return blocks_of(share_among_threads(batch, target / map, 1), tiles_h * MH, tiles_w * MW, batch, pass.h, pass.w);
  if (tiles_w <= target)
    return blocks_of(1, share_among_threads(tiles_h, target / tiles_w, batch) * MH, tiles_w * MW, batch, pass.h,
                     pass.w);
  return blocks_of(1, MH, share_evenly(tiles_w, target) * MW, batch, pass.h, pass.w);
}

// The extent of a block up to the end of its last tiles.
template <class T>
Extent whole_tiles(const Extent& e) {
  Extent whole = e;
  whole.rows = round_up(e.rows, T::H::M), whole.columns = round_up(e.columns, T::W::M);
  return whole;
}

// Transforms the tiles of a block, from its strip.
template <class T>
void transform_tiles(float* transformed, const TileStacks& layout, const float* strip, const Extent& e,
                     const Pieces<T>& pieces, int64_t channels) {
  constexpr int64_t down = T::H::M * T::H::STRIDE, right = T::W::M * T::W::STRIDE;  // from one tile to the next
  const int64_t high = layout.high + pieces.along_h - 1, wide = layout.wide + pieces.along_w - 1;
  const int64_t line = ((wide - 1) * right + T::W::N) * channels, map = ((high - 1) * down + T::H::N) * line;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t h = 0; h < high; ++h)
      for (int64_t w = 0; w < wide; ++w) {
        const float* corner = strip + n * map + h * down * line + w * right * channels;
        for (int64_t c = 0; c < channels; c += kLanes<float>)
          for (int64_t copy = std::max<int64_t>(0, w - layout.wide + 1); copy < std::min(pieces.along_w, w + 1); ++copy)
            transform_tile<T>(
                {transformed + copy * layout.copy() + layout.at(layout.number(n, h, w - copy), c), layout.point()},
                corner + c, {line, channels});
      }
}

// Transforms the products of a block back, to results[position][vectors * lanes] for the positions of `e` row after
// row. Returns whether all results are finite.
template <class T>
bool gather_results(const PointTile& tile, float* results, const float* products, const TileStacks& layout,
                    const Extent& e, int64_t width) {
  constexpr int MH = T::H::M, MW = T::W::M;
  const auto transform = tile.results_in_double ? transform_results<T, double> : transform_results<T, float>;
  bool finite = true;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t h = 0; h < e.rows; h += MH)
      for (int64_t w = 0; w < e.columns; w += MW)
        finite &= transform(results + ((n * e.rows + h) * e.columns + w) * width, {e.columns * width, width},
                            {products + layout.number(n, h / MH, w / MW) * width, layout.result_point(width)}, width,
                            {std::min<int64_t>(MH, e.rows - h), std::min<int64_t>(MW, e.columns - w)});
  return finite;
}

}  // namespace film::FILM_ISA
