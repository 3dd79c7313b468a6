// The register tiles for pairs, in every size (pair_tiles.cpp).
#pragma once

#include "pair_engine.h"
#include "row_tile.h"

namespace film::FILM_ISA {

template <class Engine>
struct PairTiles {
  static MultiplyTile<Pair> of_patches(int64_t channels, int64_t rows);
  static MultiplyRows<Pair> of_strip(int64_t channels, int64_t rows);
};

}  // namespace film::FILM_ISA
