// Float32 as a sum of bfloat16, of which tiles of AMX (amx_engine.h) make products.
//
// Three limbs of 8 binary digits, each rounded to nearest, hold the 24 of a float32 exactly, two hold the 11 of a
// float16. Of the nine products of two numbers in three limbs each those six are made whose limbs' numbers add up to
// less than three: what is left out is less than 2^-23 of the product, and on average a tenth of what float32 rounds
// off. (Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
// computations", 2019.) Below 2^-102 last limbs are too small for bfloat16 and are lost.
#pragma once

#include "amx_engine.h"
#include "simd.h"

namespace film::FILM_ISA {

constexpr int kMostLimbs = 3;

// One product of two limbs that is made: limb A of the positions and limb B of the weights.
constexpr bool is_made(int a, int b) { return a + b < kMostLimbs; }

inline __m512i bits_of(Vector<float> x) { return (__m512i)x; }

// Takes the next limb off `x`, in the upper half of each lane. The last one is what is left; so what is not finite
// stays so in it.
inline __m512i next_limb(Vector<float>& x, bool last) {
  if (last) return bits_of(x);
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  const __m512i limb = _mm512_and_si512(_mm512_add_epi32(bits_of(x), _mm512_set1_epi32(0x8000)), upper);
  x -= (Vector<float>)limb;
  return limb;
}

// The upper halves of two vectors side by side: those of `even` and of `odd`, in turn.
inline __m512i pair_up(__m512i even, __m512i odd) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  return _mm512_or_si512(_mm512_srli_epi32(even, 16), _mm512_and_si512(odd, upper));
}

// Writes the limbs of 32 products, `plane` elements apart. Product i and product i + 16 are a pair: tiles do not mind,
// as long as both factors have it so.
template <int LIMBS>
inline void put_limbs(uint16_t* dst, int64_t plane, Vector<float> even, Vector<float> odd) {
#pragma GCC unroll 3
  for (int limb = 0; limb < LIMBS; ++limb) {
    const __m512i first = next_limb(even, limb + 1 == LIMBS), second = next_limb(odd, limb + 1 == LIMBS);
    _mm512_storeu_si512(dst + limb * plane, pair_up(first, second));
  }
}

// A number that is not finite is none in limbs either: what it makes of its sums is left to other kernels.
inline bool all_finite(const float* values, int64_t count) {
  __mmask16 bad = 0;
  for (int64_t i = 0; i < count; i += kLanes<float>)
    bad |= _mm512_fpclass_ps_mask((__m512)load(values + i), 0x99);  // infinities and NaN
  return bad == 0;
}

}  // namespace film::FILM_ISA
