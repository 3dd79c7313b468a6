// Pairs of bfloat16, which some processors multiply and add up in the time of one product of float32.
#pragma once

#include "simd.h"

namespace film::FILM_ISA {

// Two numbers of bfloat16 side by side, the first in the lower half.
using Pair = int32_t;

// What sums of such elements are in.
template <class E>
using SumOf = std::conditional_t<std::is_same_v<E, Pair>, float, E>;

// How many pairs so many numbers take.
inline int64_t pairs_of(int64_t count) { return (count + 1) / 2; }

// Pairs of numbers that bfloat16 has.
inline Vector<Pair> pair_up(Vector<float> first, Vector<float> second) {
  const Vector<Pair> upper = Vector<Pair>{} + static_cast<Pair>(0xffff0000u);
  return (((Vector<Pair>)first >> 16) & ~upper) | ((Vector<Pair>)second & upper);
}

// Numbers rounded to those that bfloat16 has, ties to even, or NaN.
inline Vector<float> rounded_to_bf16(Vector<float> x) {
  const Vector<Pair> bits = (Vector<Pair>)x, quiet = Vector<Pair>{} + 0x400000;
  return x == x ? (Vector<float>)(bits + 0x7fff + ((bits >> 16) & 1)) : (Vector<float>)(bits | quiet);
}

// One product of an element of type E and each lane's, as register tiles add it to a sum.
template <class E>
struct Floats {
  using Element = E;
  static constexpr int64_t kChunksOfChain = 1;

  template <class Lanes>
  [[gnu::always_inline]] static inline void add(Lanes& sum, E x, Lanes y) {
    sum += x * y;
  }
};

}  // namespace film::FILM_ISA
