// 32 positions times 32 channels by tiles of AMX: two by two of them, whose sums stay in the engine until all products
// are in them.
#pragma once

#include <utility>

#include "amx_limbs.h"

namespace film::FILM_ISA {

// The limbs that are multiplied, one of the positions and one of the weight at a time, in an order in which from one
// product to the next mostly one of the two is another, and so is to be loaded. The first limbs of both, whose product
// is by far the largest, are not among them: each addition to a sum rounds it, so that the small ones of all steps come
// first, while the sum is small.
struct SmallProducts {
  int count = 0, positions[5] = {}, weight[5] = {};
};

constexpr SmallProducts small_products(int position_limbs, int weight_limbs) {
  SmallProducts found;
  for (int a = 0; a < position_limbs; ++a)
    for (int i = 0; i < weight_limbs; ++i) {
      const int b = a % 2 == 0 ? i : weight_limbs - 1 - i;
      if (a + b == 0 || !is_made(a, b)) continue;
      found.positions[found.count] = a;
      found.weight[found.count++] = b;
    }
  return found;
}

// What tiles of positions read: where the first product of the first position is, for each of two tiles; the distance
// of limbs and of positions, in elements.
struct TilePositions {
  const uint16_t* first[2];
  int64_t plane, pitch;
};

// The same of tiles of weights, each of 16 channels.
struct TileWeights {
  const uint16_t* first;
  int64_t limb, tile;
};

// 32 products: how far behind the first ones they are, in positions and in weights.
struct TileStep {
  int64_t positions, weights;
};

// Lines of memory that will be read soon, of which each step fetches some into the second cache.
struct ComingLines {
  const char* at = nullptr;
  int64_t of_step = 0;
};

// M and N, 1 or 2, are numbers of tiles; LA and LB of limbs.
template <class Engine, int M, int N, int LA, int LB>
struct AmxTile {
  static constexpr SmallProducts kSmall = small_products(LA, LB);

  // out[M * 16][N * 16] = the sum over all steps.
  static void multiply(const TilePositions& positions, const TileWeights& weights, const TileStep* steps, int64_t count,
                       float* out, ComingLines coming) {
    Engine::template zero<0>();
    if constexpr (N > 1) Engine::template zero<1>();
    if constexpr (M > 1) Engine::template zero<2>();
    if constexpr (M > 1 && N > 1) Engine::template zero<3>();
    if constexpr (kSmall.count > 0)
      for (const TileStep* step = steps; step < steps + count; ++step)
        multiply_small(positions, weights, *step, std::make_integer_sequence<int, kSmall.count>());
    for (const TileStep* step = steps; step < steps + count; ++step) {
      for (int64_t line = 0; line < coming.of_step; ++line, coming.at += 64) __builtin_prefetch(coming.at, 0, 2);
      load_positions(positions, *step, 0);
      load_weights(weights, *step, 0);
      multiply_loaded();
    }
    constexpr int64_t row = N * kTileSide;
    Engine::template store<0>(out, row * 4);
    if constexpr (N > 1) Engine::template store<1>(out + kTileSide, row * 4);
    if constexpr (M > 1) Engine::template store<2>(out + kTileSide * row, row * 4);
    if constexpr (M > 1 && N > 1) Engine::template store<3>(out + kTileSide * row + kTileSide, row * 4);
  }

 private:
  // Tiles 0 to 3 are sums, 4 and 5 positions, 6 and 7 weights.
  template <int... I>
  static void multiply_small(const TilePositions& positions, const TileWeights& weights, const TileStep& step,
                             std::integer_sequence<int, I...>) {
    (multiply_limbs<I>(positions, weights, step), ...);
  }

  template <int I>
  static void multiply_limbs(const TilePositions& positions, const TileWeights& weights, const TileStep& step) {
    constexpr int a = kSmall.positions[I], b = kSmall.weight[I], before = I > 0 ? I - 1 : 0;
    if constexpr (I == 0 || a != kSmall.positions[before]) load_positions(positions, step, a);
    if constexpr (I == 0 || b != kSmall.weight[before]) load_weights(weights, step, b);
    multiply_loaded();
  }

  static void load_positions(const TilePositions& positions, const TileStep& step, int limb) {
    const int64_t at = limb * positions.plane + step.positions, row = positions.pitch * 2;
    Engine::template load<4>(positions.first[0] + at, row);
    if constexpr (M > 1) Engine::template load<5>(positions.first[1] + at, row);
  }

  static void load_weights(const TileWeights& weights, const TileStep& step, int limb) {
    const int64_t at = limb * weights.limb + step.weights;
    Engine::template load<6>(weights.first + at, 64);
    if constexpr (N > 1) Engine::template load<7>(weights.first + at + weights.tile, 64);
  }

  static void multiply_loaded() {
    Engine::template multiply<0, 4, 6>();
    if constexpr (N > 1) Engine::template multiply<1, 4, 7>();
    if constexpr (M > 1) Engine::template multiply<2, 5, 6>();
    if constexpr (M > 1 && N > 1) Engine::template multiply<3, 5, 7>();
  }
};

using MultiplyAmx = void (*)(const TilePositions&, const TileWeights&, const TileStep* steps, int64_t count, float* out,
                             ComingLines);

// The tile of m times 16 positions and n times 16 channels.
template <class Engine, int LA, int LB>
MultiplyAmx amx_multiplier(int64_t m, int64_t n) {
  if (m > 1) return n > 1 ? AmxTile<Engine, 2, 2, LA, LB>::multiply : AmxTile<Engine, 2, 1, LA, LB>::multiply;
  return n > 1 ? AmxTile<Engine, 1, 2, LA, LB>::multiply : AmxTile<Engine, 1, 1, LA, LB>::multiply;
}

}  // namespace film::FILM_ISA
