// Vectors of the instruction set that this file is compiled for, and conversions to and from the storage types.
//
// Written with the vector extensions of GCC and Clang: one source for SSE2, AVX2, AVX-512 and NEON. Each kernel file is
// compiled once for each set, with FILM_ISA naming it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace film::FILM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
// Register tiles: rows x vectors. Forward has 28 + 2 + 1 of 32 registers busy, the weight gradient 24 + 3 + 1.
constexpr int kTileRows = 14, kTileVectors = 2, kGradRows = 8, kGradVectors = 3;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6, kTileVectors = 2, kGradRows = 4, kGradVectors = 3;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6, kTileVectors = 4, kGradRows = 6, kGradVectors = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6, kTileVectors = 2, kGradRows = 4, kGradVectors = 3;
#endif

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  using integer = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  typedef integer mask __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
using Mask = typename VectorOf<A>::mask;
template <class A>
constexpr int kLanes = kVectorBytes / sizeof(A);

// Half a vector. Where half the work takes half the time, the last lanes of a tile are one (tile_choice.h): cores that
// run 64 bytes in two steps, as Zen 4 does.
#if defined(__AVX512F__)
constexpr bool kHasHalves = true;
#else
constexpr bool kHasHalves = false;
#endif
template <class A>
struct HalfOf {
  typedef A type __attribute__((vector_size(kVectorBytes / 2)));
};
template <class A>
using Half = typename HalfOf<A>::type;

// Half a vector's lanes, and as many zeros behind them.
template <class A>
inline Vector<A> with_zeros(Half<A> half) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm512_maskz_broadcast_f32x8(0x00ff, (__m256)half);
  if constexpr (sizeof(A) == 8) return (Vector<A>)_mm512_maskz_broadcast_f64x4(0x0f, (__m256d)half);
#endif
  Vector<A> whole{};
  std::memcpy(&whole, &half, sizeof half);
  return whole;
}

template <class A>
inline Vector<A> load(const A* p) {
  Vector<A> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class A>
inline void store(A* p, Vector<A> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class A>
inline Vector<A> splat(A value) {
  return Vector<A>{} + value;
}

// Lane numbers 0, 1, 2, ...
template <class A>
inline Mask<A> lane_numbers() {
  Mask<A> lanes;
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = i;
  return lanes;
}

// One bit a lane, lane 0 lowest, of a comparison's result.
template <class A>
inline uint32_t to_bits(Mask<A> mask) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(A) == 4) return _mm512_movepi32_mask((__m512i)mask);
  if constexpr (sizeof(A) == 8) return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
  if constexpr (sizeof(A) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
#elif defined(__SSE2__)
  if constexpr (sizeof(A) == 4) return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
  if constexpr (sizeof(A) == 8) return static_cast<uint32_t>(_mm_movemask_pd((__m128d)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<A>; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

// The reverse: all ones in the lanes whose bit is set.
template <class A>
inline Mask<A> from_bits(uint32_t bits) {
  using I = typename VectorOf<A>::integer;
  Mask<A> selector;
  for (int i = 0; i < kLanes<A>; ++i) selector[i] = I(1) << i;
  return ((Mask<A>{} + static_cast<I>(bits)) & selector) != 0;
}

// Calls body(std::integral_constant<int, N>()) with a number N from 1 to MOST, which the compiler then knows.
template <int MOST, int N = 1, class Body>
void with_constant(int64_t number, const Body& body) {
  if constexpr (N < MOST)
    if (number > N) return with_constant<MOST, N + 1>(number, body);
  body(std::integral_constant<int, N>());
}

// Storage types of 16 bits.
struct bf16 {
  uint16_t raw;
};
struct f16 {
  uint16_t raw;
};

inline float to_float(bf16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.raw) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

inline bf16 to_bf16(float f) {  // to nearest, ties to even; NaN stays NaN
  uint32_t wide;
  std::memcpy(&wide, &f, 4);
  if ((wide & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1)) >> 16)};
}

inline float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.raw);
#elif defined(__aarch64__)
  __fp16 h;
  std::memcpy(&h, &x.raw, 2);
  return static_cast<float>(h);
#else
  // Shift the exponent and mantissa into place and multiply by 2^112, which also mends denormals.
  const uint32_t sign = static_cast<uint32_t>(x.raw & 0x8000u) << 16, rest = x.raw & 0x7fffu;
  uint32_t wide = rest << 13;
  float f;
  if (rest >= 0x7c00u) {
    wide |= 0x7f800000u;
    std::memcpy(&f, &wide, 4);
  } else {
    std::memcpy(&f, &wide, 4);
    f *= 0x1p112f;
  }
  std::memcpy(&wide, &f, 4);
  wide |= sign;
  std::memcpy(&f, &wide, 4);
  return f;
#endif
}

inline f16 to_f16(float f) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT))};
#elif defined(__aarch64__)
  const __fp16 h = static_cast<__fp16>(f);
  f16 x;
  std::memcpy(&x.raw, &h, 2);
  return x;
#else
  uint32_t wide;
  std::memcpy(&wide, &f, 4);
  const uint32_t sign = (wide >> 16) & 0x8000u;
  wide &= 0x7fffffffu;
  uint32_t out;
  if (wide > 0x7f800000u) {
    out = 0x7e00u;  // NaN
  } else if (wide >= 0x477ff000u) {
    out = 0x7c00u;                  // rounds past the largest: infinity
  } else if (wide < 0x38800000u) {  // denormal: add 0.5, whose last mantissa bit is then a denormal's unit
    float shifted;
    std::memcpy(&shifted, &wide, 4);
    shifted += 0.5f;
    std::memcpy(&out, &shifted, 4);
    out -= 0x3f000000u;
  } else {  // to nearest, ties to even
    out = (wide - 0x38000000u + 0xfffu + ((wide >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | out)};
#endif
}

// from storage to the accumulator's type and back
template <class A, class T>
inline A widen(T x) {
  if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
    return to_float(x);
  } else {
    return static_cast<A>(x);
  }
}

template <class T, class A>
inline T narrow(A x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(x);
  } else if constexpr (std::is_same_v<T, f16>) {
    return to_f16(x);
  } else {
    return static_cast<T>(x);
  }
}

// count contiguous elements, from storage to the accumulator's type
template <class A, class T>
inline void widen_copy(A* __restrict dst, const T* __restrict src, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, bf16>) {
    for (; i + 16 <= count; i += 16) {
      const __m512i wide =
          _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i)));
      _mm512_storeu_si512(dst + i, _mm512_maskz_slli_epi32(0xffff, wide, 16));
    }
  } else if constexpr (std::is_same_v<T, f16>) {
    for (; i + 16 <= count; i += 16)
      _mm512_storeu_ps(dst + i,
                       _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i))));
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, bf16>) {
    for (; i + 8 <= count; i += 8) {
      const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), _mm256_slli_epi32(wide, 16));
    }
  } else if constexpr (std::is_same_v<T, f16>) {
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  }
#endif
  for (; i < count; ++i) dst[i] = widen<A>(src[i]);
}

// and back
template <class T, class A>
inline void narrow_copy(T* __restrict dst, const A* __restrict src, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, f16>) {
    for (; i + 16 <= count; i += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i),
                          _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, f16>) {
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; ++i) dst[i] = narrow<T>(src[i]);
}

}  // namespace film::FILM_ISA
