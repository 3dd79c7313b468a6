// The loops of the register tile of tile.h, for floats and for pairs.
#pragma once

#include "tile_choice.h"

namespace film::FILM_ISA {

// sum[m] += the sum over `count` products r of rows[m * PITCH + r] * weights[r]. Leaves `weights` at those after them.
template <class Engine, int64_t PITCH, class E, int M, int V>
[[gnu::always_inline]] inline void add_products(Vector<SumOf<E>> (&sum)[M][V], const E* __restrict rows,
                                                const E* __restrict& weights, int64_t count) {
  for (int64_t r = 0; r < count; ++r, weights += V * kLanes<E>) {
    Vector<E> w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = load(weights + v * kLanes<E>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const E x = rows[m * PITCH + r];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) Engine::add(sum[m][v], x, w[v]);
    }
  }
}

// One chain: sum[m] = the sum over `count` products.
template <class Engine, int64_t PITCH, class E, int M, int V>
[[gnu::always_inline]] inline void sum_chain(Vector<SumOf<E>> (&sum)[M][V], const E* __restrict rows,
                                             const E* __restrict& weights, int64_t count) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = Vector<SumOf<E>>{};
  add_products<Engine, PITCH>(sum, rows, weights, count);
}

// Every chunk is a chain, or of pairs some chunks together are.
template <class Engine, int64_t CHUNK>
struct ChunkTile {
  using E = typename Engine::Element;
  using Function = MultiplyTile<E>;
  static constexpr int kRows = kTileRows;

  template <int V, int M>
  static void multiply(int64_t R, const E* __restrict patches, const E* __restrict weights, SumOf<E>* __restrict out,
                       bool first) {
    constexpr int64_t kRowPitch = kPitch<E, CHUNK>, kChain = Engine::kChunksOfChain * CHUNK;
    for (int64_t begin = 0; begin == 0 || begin < R; begin += kChain) {
      Vector<SumOf<E>> sum[M][V];
      sum_chain<Engine, kRowPitch>(sum, patches, weights, std::min(CHUNK, R - begin));
      patches += kTileRows * kRowPitch;
      for (int64_t from = begin + CHUNK; from < std::min(begin + kChain, R); from += CHUNK) {
        add_products<Engine, kRowPitch>(sum, patches, weights, std::min(CHUNK, R - from));
        patches += kTileRows * kRowPitch;
      }
      put_sums(out, sum, first && begin == 0);
    }
  }
};

}  // namespace film::FILM_ISA
