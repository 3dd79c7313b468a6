// Picks a register tile by its size, out of one compiled for every number of vectors and rows.
#pragma once

#include <utility>

#include "tile.h"

namespace film::FILM_ISA {

template <class Tile, int V, int H, int... M>
typename Tile::Function tile_of_rows(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr typename Tile::Function all[] = {Tile::template multiply<V, H, M + 1>...};
  return all[rows - 1];
}

// Tile::multiply<V, H, M> for M = `rows` (at most Tile::kRows), and so many vectors V that `channels` fit into them (at
// most kTileVectors), the last of which is half a one (H = 1, V without it) where that is enough.
template <class Tile, class A, int VECTORS = 1>
typename Tile::Function choose_tile(int64_t channels, int64_t rows) {
  constexpr int64_t L = kLanes<A>;
  if constexpr (VECTORS < kTileVectors)
    if (channels > VECTORS * L) return choose_tile<Tile, A, VECTORS + 1>(channels, rows);
  constexpr auto all_rows = std::make_integer_sequence<int, Tile::kRows>();
  if constexpr (kHasHalves)
    if (2 * (channels - (VECTORS - 1) * L) <= L) return tile_of_rows<Tile, VECTORS - 1, 1>(rows, all_rows);
  return tile_of_rows<Tile, VECTORS, 0>(rows, all_rows);
}

}  // namespace film::FILM_ISA
