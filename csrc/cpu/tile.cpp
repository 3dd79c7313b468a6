// The register tiles of tile.h, in every size: compiled once, since that takes long.
#include "chunk_tile.h"

namespace film::FILM_ISA {
namespace {

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
        TileSums<float, M, V, H> sums;
        sums.clear();
        add_products<Floats<float>, kRowPitch>(sums, rows, weights, std::min(kChainProducts, R - from));
        total.add(sums, /*first=*/false);
      }
      total.put(out, first && begin == 0);
    }
  }
};

}  // namespace

template <class A, int64_t CHUNK>
MultiplyTile<A> tile_multiplier(int64_t channels, int64_t rows) {
  return choose_tile<ChunkTile<Floats<A>, CHUNK>, A>(channels, rows);
}

MultiplyTile<float> precise_tile_multiplier(int64_t channels, int64_t rows) {
  return choose_tile<PreciseTile, float>(channels, rows);
}

template MultiplyTile<float> tile_multiplier<float, kChunk>(int64_t, int64_t);
template MultiplyTile<float> tile_multiplier<float, kShortChunk>(int64_t, int64_t);
template MultiplyTile<double> tile_multiplier<double, kChunk>(int64_t, int64_t);

}  // namespace film::FILM_ISA
