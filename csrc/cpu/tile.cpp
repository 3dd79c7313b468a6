// The register tiles of tile.h, in every size: compiled once, since that takes long.
#include "tile_choice.h"

namespace film::FILM_ISA {
namespace {

// One chain: the sums over `count` products r of rows[m * PITCH + r] * weights[r]. Leaves `weights` at the next
// chain's.
template <int64_t PITCH, class A, int M, int V, int H>
[[gnu::always_inline]] inline TileSums<A, M, V, H> sum_chain(const A* __restrict rows, const A* __restrict& weights,
                                                             int64_t count) {
  TileSums<A, M, V, H> sums;
  sums.clear();
  for (int64_t r = 0; r < count; ++r, weights += sums.kRow) {
    const TileLanes<A, V, H> w(weights);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sums.add(m, rows[m * PITCH + r], w);
  }
  return sums;
}

// Every chunk is a chain.
template <class A, int64_t CHUNK>
struct ChunkTile {
  using Function = MultiplyTile<A>;
  static constexpr int kRows = kTileRows;

  template <int V, int H, int M>
  static void multiply(int64_t R, const A* __restrict patches, const A* __restrict weights, A* __restrict out,
                       bool first) {
    for (int64_t begin = 0; begin == 0 || begin < R; begin += CHUNK, patches += kTileRows * kPitch<A, CHUNK>)
      sum_chain<kPitch<A, CHUNK>, A, M, V, H>(patches, weights, std::min(CHUNK, R - begin))
          .put(out, first && begin == 0);
  }
};

// Chains are of 8 products. Eight of them are added up in registers, for which there are enough of those with half as
// many rows, and only their sum is added to what is in memory.
struct PreciseTile {
  using Function = MultiplyTile<float>;
  static constexpr int kRows = kPreciseRows;

  template <int V, int H, int M>
  static void multiply(int64_t R, const float* __restrict patches, const float* __restrict weights,
                       float* __restrict out, bool first) {
    constexpr int64_t kChainProducts = 8, kTogether = 8 * kChainProducts, kPart = kShortChunk,
                      kRowPitch = kPitch<float, kPart>;
    static_assert(kPart % kChainProducts == 0);
    for (int64_t begin = 0; begin == 0 || begin < R; begin += kTogether) {
      TileSums<float, M, V, H> total;
      total.clear();
      for (int64_t from = begin; from < std::min(begin + kTogether, R); from += kChainProducts) {
        const float* rows = patches + from / kPart * kPreciseRows * kRowPitch + from % kPart;
        total.add(sum_chain<kRowPitch, float, M, V, H>(rows, weights, std::min(kChainProducts, R - from)),
                  /*first=*/false);
      }
      total.put(out, first && begin == 0);
    }
  }
};

}  // namespace

template <class A, int64_t CHUNK>
MultiplyTile<A> tile_multiplier(int64_t channels, int64_t rows) {
  return choose_tile<ChunkTile<A, CHUNK>, A>(channels, rows);
}

MultiplyTile<float> precise_tile_multiplier(int64_t channels, int64_t rows) {
  return choose_tile<PreciseTile, float>(channels, rows);
}

template MultiplyTile<float> tile_multiplier<float, kChunk>(int64_t, int64_t);
template MultiplyTile<float> tile_multiplier<float, kShortChunk>(int64_t, int64_t);
template MultiplyTile<double> tile_multiplier<double, kChunk>(int64_t, int64_t);

}  // namespace film::FILM_ISA
