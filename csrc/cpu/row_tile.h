// The register tile of the convolution for few channels, which reads the strip itself: no patch is packed.
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

// out[M][V * lanes] = products[M][R] * weights[R][V * lanes]. The stretches say where the products of a row are from
// `base` on, and `pitch` elements further those of the next row, which is the next position.
template <class E>
using MultiplyRows = void (*)(const Stretch* begin, const Stretch* end, const E* base, int64_t pitch, const E* weights,
                              SumOf<E>* out);

// The tile for so many channels and rows, as tile_multiplier has it, from row_tile.cpp.
template <class A>
MultiplyRows<A> rows_multiplier(int64_t channels, int64_t rows);

// Whether tiles read the strip. They do where all positions of a tile are neighbours in one row, which fills at least
// half of the tile, and where channels are too few to make up for packing patches.
template <class A>
bool reads_strip(const Pass<A>& pass, const Panels<A>& panels, int64_t columns, int64_t source_channels) {
  constexpr int64_t kPanels = 2, kPitchBytes = 2048;
  return pass.products > 0 && panels.count() <= kPanels && 2 * share_evenly(columns, kTileRows) >= kTileRows &&
         source_channels * pass.w.step * static_cast<int64_t>(sizeof(A)) <= kPitchBytes;
}

// Where the products of a position are in a strip whose rows are `line` elements long, in chains of kChunk products.
template <class A>
std::vector<Stretch> stretches_of(const Pass<A>& pass, int64_t line, int64_t source_channels) {
  std::vector<Stretch> stretches;
  const bool whole_rows = pass.w.consecutive();  // then the taps of a kernel row lie side by side
  const int64_t taps = pass.w.offset.size(), count_in_row = whole_rows ? 1 : taps;
  const int64_t length = whole_rows ? taps * source_channels : source_channels;
  int64_t left = kChunk;
  for (int64_t offset_h : pass.h.offset)
    for (int64_t i = 0; i < count_in_row; ++i) {
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
