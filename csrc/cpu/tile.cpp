// The register tiles of tile.h, in every size: compiled once, since that takes long.
#include "tile.h"

#include <utility>

namespace film::FILM_ISA {
namespace {

// out[M][V * lanes] = patches[M][R] * weights[R][V * lanes]
template <class A, int64_t CHUNK, int V, int M>
void multiply_tile(int64_t R, const A* __restrict patches, const A* __restrict weights, A* __restrict out) {
  constexpr int L = kLanes<A>;
  for (int64_t begin = 0; begin == 0 || begin < R; begin += CHUNK, patches += kTileRows * kPitch<A, CHUNK>) {
    Vector<A> sum[M][V] = {};
    const int64_t count = std::min(CHUNK, R - begin);
    for (int64_t r = 0; r < count; ++r, weights += V * L) {
      Vector<A> w[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) w[v] = load(weights + v * L);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const A x = patches[m * kPitch<A, CHUNK> + r];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] += x * w[v];
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        A* at = out + (m * V + v) * L;
        store(at, begin == 0 ? sum[m][v] : load(at) + sum[m][v]);
      }
  }
}

// The same in chains of 8 products, whose sums stay in registers too, for half as many rows; the sum of eight is then
// added to those before it.
template <int V, int M>
void multiply_precisely(int64_t R, const float* __restrict patches, const float* __restrict weights,
                        float* __restrict out) {
  constexpr int64_t L = kLanes<float>, kChain = 8, kTogether = 8 * kChain, kPart = kShortChunk;
  static_assert(kPart % kChain == 0);
  for (int64_t begin = 0; begin == 0 || begin < R; begin += kTogether) {
    Vector<float> total[M][V] = {};
    for (int64_t from = begin; from < std::min(begin + kTogether, R); from += kChain) {
      const float* rows = patches + from / kPart * kPreciseRows * kPitch<float, kPart> + from % kPart;
      Vector<float> sum[M][V] = {};
      const int64_t count = std::min(kChain, R - from);
      for (int64_t r = 0; r < count; ++r, weights += V * L) {
        Vector<float> w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) w[v] = load(weights + v * L);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const float x = rows[m * kPitch<float, kPart> + r];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[m][v] += x * w[v];
        }
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) total[m][v] += sum[m][v];
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* at = out + (m * V + v) * L;
        store(at, begin == 0 ? total[m][v] : load(at) + total[m][v]);
      }
  }
}

template <class A, int64_t CHUNK, int V, int... M>
MultiplyTile<A> tile_of_rows(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr MultiplyTile<A> all[] = {multiply_tile<A, CHUNK, V, M + 1>...};
  return all[rows - 1];
}

template <class A, int64_t CHUNK, int V = 1>
MultiplyTile<A> tile_of_vectors(int vectors, int64_t rows) {
  if constexpr (V < kTileVectors)
    if (vectors != V) return tile_of_vectors<A, CHUNK, V + 1>(vectors, rows);
  return tile_of_rows<A, CHUNK, V>(rows, std::make_integer_sequence<int, kTileRows>());
}

template <int V, int... M>
MultiplyTile<float> precise_tile_of_rows(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr MultiplyTile<float> all[] = {multiply_precisely<V, M + 1>...};
  return all[rows - 1];
}

template <int V = 1>
MultiplyTile<float> precise_tile_of_vectors(int vectors, int64_t rows) {
  if constexpr (V < kTileVectors)
    if (vectors != V) return precise_tile_of_vectors<V + 1>(vectors, rows);
  return precise_tile_of_rows<V>(rows, std::make_integer_sequence<int, kPreciseRows>());
}

}  // namespace

template <class A, int64_t CHUNK>
MultiplyTile<A> tile_multiplier(int vectors, int64_t rows) {
  return tile_of_vectors<A, CHUNK>(vectors, rows);
}

MultiplyTile<float> precise_tile_multiplier(int vectors, int64_t rows) {
  return precise_tile_of_vectors(vectors, rows);
}

template MultiplyTile<float> tile_multiplier<float, kChunk>(int, int64_t);
template MultiplyTile<float> tile_multiplier<float, kShortChunk>(int, int64_t);
template MultiplyTile<double> tile_multiplier<double, kChunk>(int, int64_t);

}  // namespace film::FILM_ISA
