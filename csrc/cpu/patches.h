// What a block of positions reads: its strip, and the patches made of it.
#pragma once

#include "blocks.h"
#include "strip.h"

namespace film::FILM_ISA {

// Fills the strip of a block, [sample][row][column][channel], with zeros outside of the source.
template <class A, class Source>
void fill_strip(A* strip, const Extent& e, const Taps& h, const Taps& w, const ChannelRange& range,
                const Source& source) {
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns), channels = range.count;
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
      source(strip + begin * channels, {e.n0 + n, row, first_w + begin, end - begin}, range);
      std::memset(strip + end * channels, 0, (columns - end) * channels * sizeof(A));
    }
}

// Copies `count` products to a patch, from its product `at` on, in whole vectors. `row` is the patch's row of the first
// chunk.
template <class A>
inline void copy_products(A* row, int64_t at, const A* src, int64_t count) {
  constexpr int L = kLanes<A>;
  while (count > 0) {
    A* dst = row + at / kChunk * (kTileRows * kPitch<A>)+at % kChunk;
    const int64_t some = std::min(count, kChunk - at % kChunk);
    for (int64_t i = 0; i < some; i += L) store(dst + i, load(src + i));
    at += some, src += some, count -= some;
  }
}

// Packs the patches of all positions of a block, tile after tile.
template <class A>
void pack_patches(A* patches, const A* strip, const Extent& e, const Pass<A>& pass, int64_t channels) {
  const int64_t of_tile = tile_rows(e.positions());
  const Taps &h = pass.h, &w = pass.w;
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns);
  const int64_t tile = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const bool whole_rows = w.consecutive();  // then the taps of a kernel row are one stretch
  const int64_t length = whole_rows ? static_cast<int64_t>(w.offset.size()) * channels : channels;
  int64_t i = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; ++c, ++i) {
        A* dst = patches + i / of_tile * tile + i % of_tile * kPitch<A>;
        const A* src = strip + ((n * rows + r * h.step) * columns + c * w.step) * channels;
        int64_t at = 0;
        for (int64_t offset_h : h.offset) {
          const A* line = src + (offset_h - h.low()) * columns * channels;
          if (whole_rows) {
            copy_products(dst, at, line, length), at += length;
          } else {
            for (int64_t offset_w : w.offset)
              copy_products(dst, at, line + (offset_w - w.low()) * channels, length), at += length;
          }
        }
      }
}

// The positions of a register tile: the number of the first one in its block, how many there are, and where the first
// one's products begin.
template <class A>
struct TileStart {
  int64_t first, count;
  const A* at;
};

// Lists the tiles of a block, which read the patches, or the strip where those are null.
template <class A>
void list_tiles(std::vector<TileStart<A>>& tiles, const A* strip, const A* patches, int64_t tile_size, const Extent& e,
                const Pass<A>& pass, int64_t channels) {
  tiles.clear();
  if (patches != nullptr) {
    const int64_t rows = tile_rows(e.positions());
    for (int64_t first = 0; first < e.positions(); first += rows)
      tiles.push_back({first, std::min(rows, e.positions() - first), patches + first / rows * tile_size});
    return;
  }
  const int64_t lines = pass.h.extent(e.rows), line = pass.w.extent(e.columns) * channels;
  const int64_t some = tile_rows(e.columns);
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; c += some)
        tiles.push_back({(n * e.rows + r) * e.columns + c, std::min(some, e.columns - c),
                         strip + (n * lines + r * pass.h.step) * line + c * pass.w.step * channels});
}

}  // namespace film::FILM_ISA
