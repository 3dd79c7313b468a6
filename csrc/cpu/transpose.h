// Between pixels (channels side by side) and planes (columns side by side), a block of lanes x lanes at a time.
#pragma once

#include <algorithm>

#include "simd.h"

namespace film::FILM_ISA {

// The first `count` lanes from memory, which need not go further; the others are anything.
template <class A>
inline Vector<A> load_part(const A* p, int64_t count) {
  if (count >= kLanes<A>) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm512_maskz_loadu_ps((1u << count) - 1, p);
  if constexpr (sizeof(A) == 8) return (Vector<A>)_mm512_maskz_loadu_pd((1u << count) - 1, p);
#elif defined(__AVX2__)
  const Mask<A> inside = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(count);
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm256_maskload_ps(p, (__m256i)inside);
  if constexpr (sizeof(A) == 8) return (Vector<A>)_mm256_maskload_pd(p, (__m256i)inside);
#endif
  Vector<A> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

template <class A>
inline void store_part(A* p, Vector<A> v, int64_t count) {
  if (count >= kLanes<A>) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v);
  if constexpr (sizeof(A) == 8) return _mm512_mask_storeu_pd(p, (1u << count) - 1, (__m512d)v);
#elif defined(__AVX2__)
  const Mask<A> inside = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(count);
  if constexpr (sizeof(A) == 4) return _mm256_maskstore_ps(p, (__m256i)inside, (__m256)v);
  if constexpr (sizeof(A) == 8) return _mm256_maskstore_pd(p, (__m256i)inside, (__m256d)v);
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Of rows i and i + STEP: the lanes whose number lacks the bit STEP from one, the others from the other.
template <class A, int STEP>
inline void swap_blocks(Vector<A>& a, Vector<A>& b) {
  Mask<A> low, high;
  for (int lane = 0; lane < kLanes<A>; ++lane) {
    low[lane] = lane & STEP ? kLanes<A> + lane - STEP : lane;
    high[lane] = lane & STEP ? kLanes<A> + lane : lane + STEP;
  }
  const Vector<A> first = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = first;
}

template <class A, int STEP = 1>
inline void transpose(Vector<A> (&rows)[kLanes<A>]) {
  if constexpr (STEP < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i)
      if (!(i & STEP)) swap_blocks<A, STEP>(rows[i], rows[i + STEP]);
    transpose<A, STEP * 2>(rows);
  }
}

// planes[c * pitch + w] = pixels[w * step + c]
template <class A>
inline void planes_of_pixels(A* planes, int64_t pitch, const A* pixels, int64_t step, int64_t columns,
                             int64_t channels) {
  constexpr int L = kLanes<A>;
  for (int64_t w = 0; w < columns; w += L)
    for (int64_t c = 0; c < channels; c += L) {
      const int64_t wide = std::min<int64_t>(L, columns - w), deep = std::min<int64_t>(L, channels - c);
      Vector<A> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load_part(pixels + std::min<int64_t>(w + i, columns - 1) * step + c, deep);
      transpose<A>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        if (i < deep) store_part(planes + (c + i) * pitch + w, block[i], wide);
    }
}

// pixels[w * step + c] = planes[c * pitch + w]; whole vectors of planes are read.
template <class A>
inline void pixels_of_planes(A* pixels, int64_t step, const A* planes, int64_t pitch, int64_t columns,
                             int64_t channels) {
  constexpr int L = kLanes<A>;
  for (int64_t w = 0; w < columns; w += L)
    for (int64_t c = 0; c < channels; c += L) {
      const int64_t wide = std::min<int64_t>(L, columns - w), deep = std::min<int64_t>(L, channels - c);
      Vector<A> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(planes + (c + std::min<int64_t>(i, deep - 1)) * pitch + w);
      transpose<A>(block);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        if (i < wide) store_part(pixels + (w + i) * step + c, block[i], deep);
    }
}

}  // namespace film::FILM_ISA
