// exp of vectors, accurate to one unit in the last place.
//
// x = n ln 2 + r with a whole number n and |r| <= ln 2 / 2, so exp(x) = 2^n exp(r), and a polynomial gives exp(r).
#pragma once

#include <cstddef>
#include <limits>

#include "simd.h"

namespace film::FILM_ISA {

// c[0] + c[1] x + c[2] x^2 + ...
template <class A, std::size_t N>
inline Vector<A> polynomial(Vector<A> x, const A (&c)[N]) {
  Vector<A> sum = splat<A>(c[N - 1]);
  for (std::size_t i = N - 1; i-- > 0;) sum = sum * x + c[i];
  return sum;
}

template <class A>
struct ExponentialOf;

// kHigh has so few bits that n * kHigh is exact; ln 2 = kHigh + kLow. kRest is (exp(r) - 1 - r) / r^2, interpolated at
// the Chebyshev nodes of |r| <= ln 2 / 2; its error is 1e-8 of exp(r) in float, 2e-17 in double.
template <>
struct ExponentialOf<float> {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23;
  static constexpr float kRound = 0x1.8p23f;  // added, it leaves no bit below 1
  static constexpr float kHigh = 0x1.63p-1f, kLow = -2.12194440055e-4f;
  static constexpr float kLargest = 0x1.62e42ep6f, kSmallest = -0x1.5d589ep6f;  // exp of these is finite and normal
  static constexpr float kRest[] = {0x1p-1f, 0x1.5554dep-3f, 0x1.55551ap-5f, 0x1.120b62p-7f, 0x1.6d10fcp-10f};
};
template <>
struct ExponentialOf<double> {
  typedef uint64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kHigh = 0x1.62e42fefa38p-1, kLow = 5.4979230187083711747e-14;
  static constexpr double kLargest = 0x1.62e42fefa39efp9, kSmallest = -0x1.6232bdd7abcd2p9;
  static constexpr double kRest[] = {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d68p-5,
                                     0x1.11111111109b5p-7,  0x1.6c16c17889ef1p-10, 0x1.a01a01a7c2efep-13,
                                     0x1.a019b9149a41cp-16, 0x1.71de0db2f6b19p-19, 0x1.28917c89a43a7p-22,
                                     0x1.af389ecfc4b9cp-26};
};

// n, as `shifted` has it in its lowest bits and as a number, and r.
template <class A>
struct Reduced {
  Vector<A> shifted, n, r;

  explicit Reduced(Vector<A> x) {
    using E = ExponentialOf<A>;
    shifted = x * A(1.44269504088896340736) + E::kRound;
    n = shifted - E::kRound;
    r = x - n * E::kHigh;
    r = r - n * E::kLow;
  }
};

// exp(x): infinity past the largest number, NaN for NaN. What is below the smallest normal number may be 0.
template <class A>
inline Vector<A> exponential(Vector<A> x) {
  using E = ExponentialOf<A>;
  const Reduced<A> reduced(x);
  const Vector<A> shifted = reduced.shifted, n = reduced.n;
  Vector<A> r = reduced.r;
#if defined(__AVX512DQ__)
  // The smaller in size of r and 0.5, with the sign of r. NaN counts as the larger: so what is infinite or far too
  // large leaves a sensible r, and n alone decides.
  if constexpr (sizeof(A) == 4) r = (Vector<A>)_mm512_range_ps((__m512)r, (__m512)splat<A>(0.5), 2);
  if constexpr (sizeof(A) == 8) r = (Vector<A>)_mm512_range_pd((__m512d)r, (__m512d)splat<A>(0.5), 2);
#endif
  const Vector<A> power = (polynomial<A>(r, E::kRest) * r + 1) * r + 1;
#if defined(__AVX512DQ__)
  // power * 2^n, with a mask of all ones: GCC warns of the undefined vector in the form that has no mask.
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm512_maskz_scalef_ps(0xffff, (__m512)power, (__m512)n);
  if constexpr (sizeof(A) == 8) return (Vector<A>)_mm512_maskz_scalef_pd(0xff, (__m512d)power, (__m512d)n);
#else
  // n is in the lowest bits of `shifted`, and goes to the exponent: which is right only where the result is normal.
  const Vector<A> y = (Vector<A>)((typename E::Bits)power + ((typename E::Bits)shifted << E::kMantissa));
  const Vector<A> bounded = x <= E::kLargest ? y : x * std::numeric_limits<A>::infinity();
  return x < E::kSmallest ? Vector<A>{} : bounded;
#endif
}

// exp(x) and exp(x) - 1 of x that are not above 0. Both come from exp(r) - 1, so that of a small x no digits are lost.
template <class A>
struct ExponentialOfNegative {
  Vector<A> rest, power;  // exp(r) - 1, and 2^n

  explicit ExponentialOfNegative(Vector<A> given) {
    using E = ExponentialOf<A>;
    const auto vanishes = given < E::kSmallest;
    const Vector<A> x = vanishes ? Vector<A>{} : given;
    const Reduced<A> reduced(x);
    rest = (polynomial<A>(reduced.r, E::kRest) * reduced.r + 1) * reduced.r;
    using Bits = typename E::Bits;
    const Vector<A> scale = (Vector<A>)((Bits)splat<A>(1) + ((Bits)reduced.shifted << E::kMantissa));
    power = vanishes ? Vector<A>{} : scale;
  }
  Vector<A> value() const { return rest * power + power; }
  Vector<A> minus_one() const { return rest * power + (power - 1); }
};

}  // namespace film::FILM_ISA
