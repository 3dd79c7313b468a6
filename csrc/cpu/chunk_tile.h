// The loops of the register tile of tile.h, for floats and for pairs.
#pragma once

#include "tile_choice.h"

namespace film::FILM_ISA {

// sums += the sums over `count` products r of rows[m * PITCH + r] * weights[r]. Leaves `weights` at those after them.
template <class Engine, int64_t PITCH, class E, int M, int V, int H>
[[gnu::always_inline]] inline void add_products(TileSums<SumOf<E>, M, V, H>& sums, const E* __restrict rows,
                                                const E* __restrict& weights, int64_t count) {
  for (int64_t r = 0; r < count; ++r, weights += sums.kRow) {
    const TileLanes<E, V, H> w(weights);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sums.template add<Engine>(m, rows[m * PITCH + r], w);
  }
}

// Every chunk is a chain, or of pairs some chunks together are.
template <class Engine, int64_t CHUNK>
struct ChunkTile {
  using E = typename Engine::Element;
  using Function = MultiplyTile<E>;
  static constexpr int kRows = kTileRows;

  template <int V, int H, int M>
  static void multiply(int64_t R, const E* __restrict patches, const E* __restrict weights, SumOf<E>* __restrict out,
                       bool first) {
    constexpr int64_t kRowPitch = kPitch<E, CHUNK>, kChain = Engine::kChunksOfChain * CHUNK;
    for (int64_t begin = 0; begin == 0 || begin < R; begin += kChain) {
      TileSums<SumOf<E>, M, V, H> sums;
      sums.clear();
      add_products<Engine, kRowPitch>(sums, patches, weights, std::min(CHUNK, R - begin));
      patches += kTileRows * kRowPitch;
      for (int64_t from = begin + CHUNK; from < std::min(begin + kChain, R); from += CHUNK) {
        add_products<Engine, kRowPitch>(sums, patches, weights, std::min(CHUNK, R - from));
        patches += kTileRows * kRowPitch;
      }
      sums.put(out, first && begin == 0);
    }
  }
};

}  // namespace film::FILM_ISA
