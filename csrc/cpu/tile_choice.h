// Picks a register tile by its size, out of one compiled for every number of vectors and rows.
#pragma once

#include <utility>

#include "tile.h"

namespace film::FILM_ISA {

template <class Tile, int V, int... M>
typename Tile::Function tile_of_rows(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr typename Tile::Function all[] = {Tile::template multiply<V, M + 1>...};
  return all[rows - 1];
}

// Tile::multiply<V, M> for V = `vectors` (at most kTileVectors) and M = `rows` (at most Tile::kRows).
template <class Tile, int V = 1>
typename Tile::Function choose_tile(int vectors, int64_t rows) {
  if constexpr (V < kTileVectors)
    if (vectors != V) return choose_tile<Tile, V + 1>(vectors, rows);
  return tile_of_rows<Tile, V>(rows, std::make_integer_sequence<int, Tile::kRows>());
}

}  // namespace film::FILM_ISA
