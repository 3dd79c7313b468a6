// The register tiles of tile.h, in every size: compiled once, since that takes long.
#include "tile_choice.h"

namespace film::FILM_ISA {
namespace {

// One chain: sum[m] = the sum over `count` products r of rows[m * PITCH + r] * weights[r]. Leaves `weights` at the next
// chain's.
template <int64_t PITCH, class A, int M, int V>
[[gnu::always_inline]] inline void sum_chain(Vector<A> (&sum)[M][V], const A* __restrict rows,
                                             const A* __restrict& weights, int64_t count) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[m][v] = Vector<A>{};
  for (int64_t r = 0; r < count; ++r, weights += V * kLanes<A>) {
    Vector<A> w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = load(weights + v * kLanes<A>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const A x = rows[m * PITCH + r];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[m][v] += x * w[v];
    }
  }
}

// Every chunk is a chain.
template <class A, int64_t CHUNK>
struct ChunkTile {
  using Function = MultiplyTile<A>;
  static constexpr int kRows = kTileRows;

  template <int V, int M>
  static void multiply(int64_t R, const A* __restrict patches, const A* __restrict weights, A* __restrict out,
                       bool first) {
    for (int64_t begin = 0; begin == 0 || begin < R; begin += CHUNK, patches += kTileRows * kPitch<A, CHUNK>) {
      Vector<A> sum[M][V];
      sum_chain<kPitch<A, CHUNK>>(sum, patches, weights, std::min(CHUNK, R - begin));
      put_sums(out, sum, first && begin == 0);
    }
  }
};

// Chains are of 8 products. Eight of them are added up in registers, for which there are enough of those with half as
// many rows, and only their sum is added to what is in memory.
struct PreciseTile {
  using Function = MultiplyTile<float>;
  static constexpr int kRows = kPreciseRows;

  template <int V, int M>
  static void multiply(int64_t R, const float* __restrict patches, const float* __restrict weights,
                       float* __restrict out, bool first) {
    constexpr int64_t kChainProducts = 8, kTogether = 8 * kChainProducts, kPart = kShortChunk,
                      kRowPitch = kPitch<float, kPart>;
    static_assert(kPart % kChainProducts == 0);
    for (int64_t begin = 0; begin == 0 || begin < R; begin += kTogether) {
      Vector<float> total[M][V] = {};
      for (int64_t from = begin; from < std::min(begin + kTogether, R); from += kChainProducts) {
        const float* rows = patches + from / kPart * kPreciseRows * kRowPitch + from % kPart;
        Vector<float> sum[M][V];
        sum_chain<kRowPitch>(sum, rows, weights, std::min(kChainProducts, R - from));
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) total[m][v] += sum[m][v];
      }
      put_sums(out, total, first && begin == 0);
    }
  }
};

}  // namespace

template <class A, int64_t CHUNK>
MultiplyTile<A> tile_multiplier(int vectors, int64_t rows) {
  return choose_tile<ChunkTile<A, CHUNK>>(vectors, rows);
}

MultiplyTile<float> precise_tile_multiplier(int vectors, int64_t rows) {
  return choose_tile<PreciseTile>(vectors, rows);
}

template MultiplyTile<float> tile_multiplier<float, kChunk>(int, int64_t);
template MultiplyTile<float> tile_multiplier<float, kShortChunk>(int, int64_t);
template MultiplyTile<double> tile_multiplier<double, kChunk>(int, int64_t);

}  // namespace film::FILM_ISA
