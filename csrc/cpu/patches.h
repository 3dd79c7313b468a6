// What a block of positions reads, filled and packed.
#pragma once

#include "blocks.h"
#include "strip.h"

namespace film::FILM_ISA {

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

// Packs the patches of all positions of a block, a tile after another.
template <class A>
void pack_patches(A* patches, const A* strip, const Extent& e, const Pass<A>& pass, int64_t channels) {
  const int64_t of_tile = tile_rows(e.positions());
  const Taps &h = pass.h, &w = pass.w;
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns);
  const int64_t tile = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const bool run = w.consecutive();
  const int64_t length = run ? static_cast<int64_t>(w.offset.size()) * channels : channels;
  int64_t i = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; ++c, ++i) {
        A* dst = patches + i / of_tile * tile + i % of_tile * kPitch<A>;
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

// A register tile's positions: the block's `first` one and how many, and where the products of the first one are.
template <class A>
struct TileStart {
  int64_t first, count;
  const A* at;
};

// The tiles of a block, over the patches or (where those are null) over the strip.
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
