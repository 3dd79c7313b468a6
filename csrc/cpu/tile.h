// The register tile of the convolution: [positions x R] patches times [R x channels] packed weights.
#pragma once

#include <algorithm>
#include <utility>

#include "simd.h"

namespace film::FILM_ISA {

// Patches are packed row by row in chunks of CHUNK products with a pitch known to the compiler; the 64 bytes between
// rows longer than that keep them from falling into the same cache sets, and take what a vector copy writes past the
// end. A chunk is also the chain of additions in the registers: chains are then added to each other, since one chain of
// all R would lose digits that the library's blocked sums keep.
constexpr int64_t kChunk = 64;
template <class A, int64_t CHUNK = kChunk>
constexpr int64_t kPitch = CHUNK * sizeof(A) <= 64 ? CHUNK : CHUNK + 64 / sizeof(A);

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The size of a part where `total` is cut into as few parts of at most `most` as will do, all about the same.
inline int64_t share_evenly(int64_t total, int64_t most) {
  const int64_t parts = (total + most - 1) / most;
  return (total + parts - 1) / parts;
}

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

template <class A>
using MultiplyTile = void (*)(int64_t, const A*, const A*, A*);

template <class A, int64_t CHUNK, int V, int... M>
MultiplyTile<A> tile_of_rows(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr MultiplyTile<A> all[] = {multiply_tile<A, CHUNK, V, M + 1>...};
  return all[rows - 1];
}

// The tile of so many vectors (at most kTileVectors) and rows (at most kTileRows).
template <class A, int64_t CHUNK = kChunk, int V = 1>
MultiplyTile<A> tile_multiplier(int vectors, int64_t rows) {
  if constexpr (V < kTileVectors)
    if (vectors != V) return tile_multiplier<A, CHUNK, V + 1>(vectors, rows);
  return tile_of_rows<A, CHUNK, V>(rows, std::make_integer_sequence<int, kTileRows>());
}

// Output channels of one group in panels of kTileVectors vectors, the last one narrower where that is enough.
template <class A>
struct Panels {
  int64_t channels;
  static constexpr int64_t kWidth = kTileVectors * kLanes<A>;
  int64_t count() const { return (channels + kWidth - 1) / kWidth; }
  int vectors(int64_t panel) const {
    const int64_t left = channels - panel * kWidth;
    return static_cast<int>(left >= kWidth ? kTileVectors : round_up(left, kLanes<A>) / kLanes<A>);
  }
  int64_t used(int64_t panel) const { return std::min(kWidth, channels - panel * kWidth); }
  int64_t padded() const { return round_up(channels, kLanes<A>); }
};

}  // namespace film::FILM_ISA
