// Between pixels (channels side by side) and planes (columns side by side), a block of lanes x lanes at a time.
#pragma once

#include <algorithm>

#include "simd.h"

namespace film::FILM_ISA {

// Loads the first `count` lanes; memory need not go further, and the other lanes are 0.
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

// One step of a transpose, of rows a and b that are STEP apart and consist of blocks of STEP lanes: a keeps its even
// blocks and gets those of b beside them, b keeps its odd blocks and gets those of a.
template <class A, int STEP>
[[gnu::always_inline]] inline void swap_blocks(Vector<A>& a, Vector<A>& b) {
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
[[gnu::always_inline]] inline void transpose(Vector<A> (&rows)[kLanes<A>]) {
  if constexpr (STEP < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i)
      if (!(i & STEP)) swap_blocks<A, STEP>(rows[i], rows[i + STEP]);
    transpose<A, STEP * 2>(rows);
  }
}

// rows[0][i] = the sum of the lanes of rows[i]; the other rows are used up.
template <class A, int STEP = 1>
inline void add_pairs(Vector<A> (&rows)[kLanes<A>]) {
  if constexpr (STEP < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; i += 2 * STEP) {
      swap_blocks<A, STEP>(rows[i], rows[i + STEP]);
      rows[i] += rows[i + STEP];
    }
    add_pairs<A, STEP * 2>(rows);
  }
}

// Loads the first `count` elements as a vector of the accumulator's type; store_as puts the first `count` lanes back
// into storage.
template <class A, class T>
inline Vector<A> load_as(const T* p, int64_t count) {
  if constexpr (std::is_same_v<A, T>) {
    return load_part(p, count);
  } else {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, bf16>) {
      const auto mask = static_cast<__mmask16>(count >= kLanes<A> ? 0xffff : (1u << count) - 1);
      const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, p));
      return (Vector<A>)_mm512_maskz_slli_epi32(0xffff, wide, 16);
    }
#endif
    A lanes[kLanes<A>] = {};
    widen_copy(lanes, p, std::min<int64_t>(count, kLanes<A>));
    return load(lanes);
  }
}

template <class A, class T>
inline void store_as(T* p, Vector<A> v, int64_t count) {
  if constexpr (std::is_same_v<A, T>) {
    store_part(p, v, count);
  } else {
    A lanes[kLanes<A>];
    store(lanes, v);
    narrow_copy(p, lanes, std::min<int64_t>(count, kLanes<A>));
  }
}

// Turns one block: to[j * to_pitch + i] = from[i * from_pitch + j] for i < rows and j < columns. Both are at most L,
// and both are L where `Whole`.
template <class A, bool Whole, class To, class From>
inline void turn_block(To* to, int64_t to_pitch, const From* from, int64_t from_pitch, int64_t rows, int64_t columns) {
  constexpr int L = kLanes<A>;
  Vector<A> block[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i)
    block[i] = load_as<A>(from + (Whole ? i : std::min<int64_t>(i, rows - 1)) * from_pitch, Whole ? L : columns);
  transpose<A>(block);
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j)
    if (Whole || j < columns) store_as<A>(to + j * to_pitch, block[j], Whole ? L : rows);
}

// to[j * to_pitch + i] = from[i * from_pitch + j] for i < rows and j < columns; A is the type in between.
template <class A, class To, class From>
void turn(To* to, int64_t to_pitch, const From* from, int64_t from_pitch, int64_t rows, int64_t columns) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t i = 0; i < rows; i += L)
    for (int64_t j = 0; j < columns; j += L) {
      To* block = to + j * to_pitch + i;
      const From* source = from + i * from_pitch + j;
    // The next rows: as many streams as rows, each too short for the machine to foresee.
#pragma GCC unroll 16
      for (int64_t ahead = L; ahead < 2 * L; ++ahead) __builtin_prefetch(source + ahead * from_pitch);
      if (i + L <= rows && j + L <= columns)
        turn_block<A, true>(block, to_pitch, source, from_pitch, L, L);
      else
        turn_block<A, false>(block, to_pitch, source, from_pitch, std::min(L, rows - i), std::min(L, columns - j));
    }
}

}  // namespace film::FILM_ISA
