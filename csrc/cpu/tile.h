// The register tile of the convolution: [positions x R] patches times [R x channels] packed weights.
#pragma once

#include <algorithm>

#include "pairs.h"

namespace film::FILM_ISA {

// Patches are packed for a tile in chunks of CHUNK products: a chunk of each of the tile's rows, then the next chunk.
// So the pitch from row to row is known to the compiler. Between rows of more than 64 bytes there are 64 bytes more,
// which keep them from falling into the same cache sets, and take what a vector copy writes past the end.
//
// A chunk, or half of a short one where digits are short, is also a chain of additions in registers. Chains are then
// added to each other, since one chain of all R products would lose digits that the library's blocked sums keep.
constexpr int64_t kChunk = 64, kShortChunk = 16;
template <class A, int64_t CHUNK = kChunk>
constexpr int64_t kPitch = CHUNK * sizeof(A) <= 64 ? CHUNK : CHUNK + 64 / sizeof(A);

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The size of a part where `total` is cut into as few parts of at most `most` as will do, all about the same.
inline int64_t share_evenly(int64_t total, int64_t most) {
  const int64_t parts = (total + most - 1) / most;
  return (total + parts - 1) / parts;
}

// Stores a tile's sums to out[M][V * lanes], or adds them to what is there where they are not the first.
template <class A, int M, int V>
[[gnu::always_inline]] inline void put_sums(A* out, const Vector<A> (&sum)[M][V], bool first) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      A* at = out + (m * V + v) * kLanes<A>;
      store(at, first ? sum[m][v] : load(at) + sum[m][v]);
    }
}

// out[M][V * lanes] = patches[M][R] * weights[R][V * lanes], which is added to what is there where it is not the first.
template <class E>
using MultiplyTile = void (*)(int64_t R, const E* patches, const E* weights, SumOf<E>* out, bool first);

// The tile of V vectors (at most kTileVectors) and M rows (at most kTileRows), from tile.cpp.
template <class A, int64_t CHUNK = kChunk>
MultiplyTile<A> tile_multiplier(int vectors, int64_t rows);

// A tile that keeps more digits, of fewer rows (at most kPreciseRows), for patches in chunks of kShortChunk.
constexpr int64_t kPreciseRows = kTileRows / 2;
MultiplyTile<float> precise_tile_multiplier(int vectors, int64_t rows);

// The output channels of a group, cut into panels of kTileVectors vectors; the last one has fewer where that is enough.
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
