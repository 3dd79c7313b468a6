// The register tile of the convolution where it reads the strip itself: no patch is gathered.
#pragma once

#include <vector>

#include "taps.h"
#include "tile.h"

namespace film::FILM_ISA {

// Products of a chain that lie side by side in the strip: `count` of them, `offset` from a position's first one.
struct Stretch {
  int64_t offset, count;
  bool last;  // of its chain: the next stretch begins a new sum
};

// As multiply_tile, of positions whose products lie in memory as `stretches` say, `pitch` from one position to the
// next.
template <class A>
using MultiplyRows = void (*)(const Stretch*, const Stretch*, const A*, int64_t, const A*, A*);

// The tile of so many vectors V (at most kTileVectors) and rows M (at most kTileRows), of row_tile.cpp.
template <class A>
MultiplyRows<A> rows_multiplier(int vectors, int64_t rows);

// Whether tiles read the strip: where a tile's positions are neighbours in one row of at least half a tile, and
// channels are too few to make up for packing patches.
template <class A>
bool reads_strip(const Pass<A>& pass, const Panels<A>& panels, int64_t columns, int64_t source_channels) {
  constexpr int64_t kPanels = 2, kPitchBytes = 2048;
  return pass.products > 0 && panels.count() <= kPanels && 2 * share_evenly(columns, kTileRows) >= kTileRows &&
         source_channels * pass.w.step * static_cast<int64_t>(sizeof(A)) <= kPitchBytes;
}

// The products of a position, in chains of kChunk, in a strip whose rows are `line` elements.
template <class A>
std::vector<Stretch> stretches_of(const Pass<A>& pass, int64_t line, int64_t source_channels) {
  std::vector<Stretch> stretches;
  const bool run = pass.w.consecutive();
  const int64_t runs = run ? 1 : pass.w.offset.size();
  const int64_t length = run ? static_cast<int64_t>(pass.w.offset.size()) * source_channels : source_channels;
  int64_t left = kChunk;
  for (int64_t offset_h : pass.h.offset)
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t offset = (offset_h - pass.h.low()) * line + (pass.w.offset[i] - pass.w.low()) * source_channels;
      for (int64_t at = 0; at < length;) {
        const int64_t count = std::min(left, length - at);
        left -= count;
        stretches.push_back({offset + at, count, left == 0});
        at += count;
        if (left == 0) left = kChunk;
      }
    }
  stretches.back().last = true;
  return stretches;
}

}  // namespace film::FILM_ISA
