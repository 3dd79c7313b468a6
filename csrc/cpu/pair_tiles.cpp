// The register tiles of pair_tiles.h: compiled once, since that takes long.
#include "pair_tiles.h"

#include "chunk_tile.h"
#include "strip_tile.h"

namespace film::FILM_ISA {

template <class Engine>
MultiplyTile<Pair> PairTiles<Engine>::of_patches(int64_t channels, int64_t rows) {
  return choose_tile<ChunkTile<Engine, kChunk>, float>(channels, rows);
}

template <class Engine>
MultiplyRows<Pair> PairTiles<Engine>::of_strip(int64_t channels, int64_t rows) {
  return choose_tile<RowTile<Engine>, float>(channels, rows);
}

template struct PairTiles<ProcessorPairs>;
template struct PairTiles<EmulatedPairs>;

}  // namespace film::FILM_ISA
