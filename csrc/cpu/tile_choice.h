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

// Tile::multiply<V, H, M> for M = `rows` (at most Tile::kRows), and V and H as with_lanes has them for `channels` (at
// most those of kTileVectors).
template <class Tile, class A>
typename Tile::Function choose_tile(int64_t channels, int64_t rows) {
  return with_lanes<A, kTileVectors>(channels, [rows](auto vectors, auto half) {
    return tile_of_rows<Tile, decltype(vectors)::value, decltype(half)::value>(
        rows, std::make_integer_sequence<int, Tile::kRows>());
  });
}

}  // namespace film::FILM_ISA
