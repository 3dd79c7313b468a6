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

// Calls body(V, H) with the vectors (at most MOST) that hold so many lanes: V whole ones, and where H is 1 half a one
// behind them. The compiler knows both.
template <class A, int MOST, int VECTORS = 1, class Body>
auto with_lanes(int64_t lanes, const Body& body) {
  constexpr int64_t L = kLanes<A>;
  if constexpr (VECTORS < MOST)
    if (lanes > VECTORS * L) return with_lanes<A, MOST, VECTORS + 1>(lanes, body);
  if constexpr (kHasHalves)
    if (2 * (lanes - (VECTORS - 1) * L) <= L)
      return body(std::integral_constant<int, VECTORS - 1>(), std::integral_constant<int, 1>());
  return body(std::integral_constant<int, VECTORS>(), std::integral_constant<int, 0>());
}

// What all rows of a tile multiply next: as many lanes as a row has sums.
template <class E, int V, int H = 0>
struct TileLanes {
  Vector<E> full[V];
  Half<E> half[H];

  [[gnu::always_inline]] explicit TileLanes(const E* at) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) full[v] = load(at + v * kLanes<E>);
    if constexpr (H == 1) std::memcpy(&half[0], at + V * kLanes<E>, sizeof half[0]);
  }
};

// The sums of a register tile: of each row V vectors, and half a one behind them where H is 1.
template <class A, int M, int V, int H = 0>
struct TileSums {
  static constexpr int64_t kRow = (V + H) * kLanes<A>;  // elements of a row of weights or of results
  Vector<A> full[M][V];
  Half<A> half[M * H];

  [[gnu::always_inline]] void clear() {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) full[m][v] = Vector<A>{};
      if constexpr (H == 1) half[m] = Half<A>{};
    }
  }

  // Adds the products of x, row m's, and the lanes, by an engine (pairs.h).
  template <class Engine = Floats<A>, class E>
  [[gnu::always_inline]] void add(int m, E x, const TileLanes<E, V, H>& lanes) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) Engine::add(full[m][v], x, lanes.full[v]);
    if constexpr (H == 1) Engine::add(half[m], x, lanes.half[0]);
  }

  // Adds another tile's, or takes them where they are the first.
  [[gnu::always_inline]] void add(const TileSums& other, bool first) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) full[m][v] = first ? other.full[m][v] : full[m][v] + other.full[m][v];
      if constexpr (H == 1) half[m] = first ? other.half[m] : half[m] + other.half[m];
    }
  }

  // Vector v of row m, with zeros behind half a one.
  [[gnu::always_inline]] Vector<A> lanes(int m, int v) const {
    if constexpr (H == 1)
      if (v == V) return with_zeros<A>(half[m]);
    return full[m][v];
  }

  // Stores them to out[M][kRow], or adds them to what is there where they are not the first.
  [[gnu::always_inline]] void put(A* out, bool first) const {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m, out += kRow) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        A* at = out + v * kLanes<A>;
        store(at, first ? full[m][v] : load(at) + full[m][v]);
      }
      if constexpr (H == 1) {
        A* at = out + V * kLanes<A>;
        const Vector<A> sum = with_zeros<A>(half[m]);  // no lane stays unwritten
        store(at, first ? sum : load(at) + sum);
      }
    }
  }
};

// out[M][V * lanes] = patches[M][R] * weights[R][V * lanes], which is added to what is there where it is not the first.
template <class E>
using MultiplyTile = void (*)(int64_t R, const E* patches, const E* weights, SumOf<E>* out, bool first);

// The tile of so many vectors that `channels` (at most those of kTileVectors) fit into them, and of M rows (at most
// kTileRows), from tile.cpp. Lanes past the last channel hold products with the zeros there, or zeros.
template <class A, int64_t CHUNK = kChunk>
MultiplyTile<A> tile_multiplier(int64_t channels, int64_t rows);

// A tile that keeps more digits, of fewer rows (at most kPreciseRows), for patches in chunks of kShortChunk.
constexpr int64_t kPreciseRows = kTileRows / 2;
MultiplyTile<float> precise_tile_multiplier(int64_t channels, int64_t rows);

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
