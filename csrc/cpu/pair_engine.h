// The engines that multiply pairs of bfloat16: the processor's own (AVX512_BF16), by assembly, and the same in plain
// C++ for the tests of machines without it.
//
// To each float32 of a sum they add the two products of a pair and a lane's pair, the second one first, each in one
// step that rounds to nearest. Subnormal numbers count as zeros, in what is multiplied and in sums.
#pragma once

#include "pairs.h"

namespace film::FILM_ISA {

// Products of bfloat16 have all their digits in a float32, and results have 8 of them, so that chains may be longer
// than those of floats.
struct LongChains {
  using Element = Pair;
  static constexpr int64_t kChunksOfChain = 4;
};

struct ProcessorPairs : LongChains {
  template <class Sums, class Pairs>
  [[gnu::always_inline]] static inline void add(Sums& sum, Pair x, Pairs y) {
    const Pairs all = Pairs{} + x;
    Sums here = sum;  // or the compiler would keep an array of sums in memory
    asm("vdpbf16ps %2, %1, %0" : "+v"(here) : "v"(y), "v"(all));
    sum = here;
  }
};

struct EmulatedPairs : LongChains {
  template <class Sums, class Pairs>
  static void add(Sums& sum, Pair x, Pairs y) {
    const float first = lower(x), second = upper(x);
    for (size_t lane = 0; lane < sizeof sum / sizeof sum[0]; ++lane) {
      const float part = flushed(__builtin_fmaf(second, upper(y[lane]), flushed(sum[lane])));
      sum[lane] = flushed(__builtin_fmaf(first, lower(y[lane]), part));
    }
  }

 private:
  static float flushed(float x) { return x < 0x1p-126f && x > -0x1p-126f ? 0 * x : x; }
  static float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return flushed(x);
  }
  static float lower(Pair pair) { return as_float(static_cast<uint32_t>(pair) << 16); }
  static float upper(Pair pair) { return as_float(static_cast<uint32_t>(pair) & 0xffff0000u); }
};

}  // namespace film::FILM_ISA
