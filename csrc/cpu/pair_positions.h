// What the weight gradient multiplies as pairs: neighbouring positions of a row. Elements of a strip are numbers of the
// input that are so far apart; those of u are made in place. Both stand where floats would.
#pragma once

#include "pairs.h"
#include "patches.h"

namespace film::FILM_ISA {

// 16 numbers of bfloat16 from src[place] on, of which those at the places begin .. end are loaded and the others are 0.
inline __m512i load_between(const bf16* src, int64_t place, int64_t begin, int64_t end) {
  const int64_t first = std::clamp<int64_t>(begin - place, 0, 16), last = std::clamp<int64_t>(end - place, first, 16);
  const auto mask = static_cast<__mmask16>((1u << last) - (1u << first));
  return _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, src + place));
}

inline Vector<Pair> beside(__m512i first, __m512i second) {
  return (Vector<Pair>)_mm512_or_si512(first, _mm512_maskz_slli_epi32(0xffff, second, 16));
}

// The columns of a row: pairs for the places 0 .. count, of which `inside` are the source's own and `src` is the one at
// place 0, or would be.
struct RowOfPairs {
  const bf16* src;
  int64_t count, begin, end, step;  // from a pair's first place to its second

  // dst[place * channels + channel], where neighbouring places lie side by side in memory.
  void turn(float* dst, int64_t channels, int64_t apart) const {
    constexpr int L = kLanes<Pair>;
    for (int64_t c = 0; c < channels; c += L)
      for (int64_t w = 0; w < count; w += L) {
        Vector<Pair> block[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          const bf16* row = src + std::min<int64_t>(c + i, channels - 1) * apart;
          block[i] = beside(load_between(row, w, begin, end), load_between(row, w + step, begin, end));
        }
        transpose<Pair>(block);
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j)
          if (w + j < count) store_part(dst + (w + j) * channels + c, (Vector<float>)block[j], channels - c);
      }
  }

  // The same where neighbouring channels do, and places are `apart`.
  void copy(float* dst, int64_t channels, int64_t apart) const {
    constexpr int64_t L = kLanes<Pair>;
    const auto is_inside = [&](int64_t w) { return begin <= w && w < end; };
    for (int64_t w = 0; w < count; ++w)
      for (int64_t c = 0; c < channels; c += L) {
        const __m512i first = load_between(src + w * apart, c, 0, is_inside(w) ? channels : 0);
        const __m512i second = load_between(src + (w + step) * apart, c, 0, is_inside(w + step) ? channels : 0);
        store_part(dst + w * channels + c, (Vector<float>)beside(first, second), channels - c);
      }
  }

  // Wherever they lie.
  void gather(float* dst, int64_t channels, int64_t of_channel, int64_t of_column) const {
    const auto at = [&](int64_t w, int64_t c) -> uint32_t {
      return begin <= w && w < end ? src[w * of_column + c * of_channel].raw : 0;
    };
    for (int64_t w = 0; w < count; ++w)
      for (int64_t c = 0; c < channels; ++c) {
        const uint32_t pair = at(w, c) | at(w + step, c) << 16;
        std::memcpy(dst + w * channels + c, &pair, sizeof pair);
      }
  }
};

// Fills the strip of a unit as fill_strip does, with pairs of an element and the one a step further on.
inline void fill_strip_with_pairs(float* strip, const Extent& e, const Taps& h, const Taps& w,
                                  const ChannelRange& range, const View& x) {
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns), channels = range.count;
  const int64_t first_h = e.h0 * h.step + h.low(), first_w = e.w0 * w.step + w.low();
  const Inside inside(w, e.w0, columns);
  for (int64_t r = 0; r < rows; ++r, strip += columns * channels) {
    const int64_t row = first_h + r;
    if (row < 0 || row >= h.source || inside.count() == 0) {
      std::memset(strip, 0, columns * channels * sizeof(float));
      continue;
    }
    const bf16* src = static_cast<const bf16*>(x.data) + e.n0 * x.n + row * x.h + first_w * x.w + range.first * x.c;
    const RowOfPairs pairs{src, columns, inside.begin, inside.end, w.step};
    if (x.c == 1)
      pairs.copy(strip, channels, x.w);
    else if (x.w == 1)
      pairs.turn(strip, channels, x.c);
    else
      pairs.gather(strip, channels, x.c, x.w);
  }
}

// Makes u[position][kGradRows] of a unit u[pair][kGradRows]. A row's last position may be alone, beside a zero.
inline void pair_up_positions(float* u, const Extent& e) {
  static_assert(2 * kGradRows == kLanes<float>);
  const float* from = u;
  for (int64_t row = 0; row < e.rows; ++row)
    for (int64_t w = 0; w < e.columns; w += 2, u += kGradRows) {
      const int64_t numbers = std::min<int64_t>(e.columns - w, 2) * kGradRows;
      const auto bits = (__m512i)rounded_to_bf16(load_part(from, numbers));
      const __m256i halves = _mm512_cvtepi32_epi16(_mm512_maskz_srli_epi32(0xffff, bits, 16));
      const __m128i first = _mm256_castsi256_si128(halves), second = _mm256_extracti128_si256(halves, 1);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(u),
                          _mm256_set_m128i(_mm_unpackhi_epi16(first, second), _mm_unpacklo_epi16(first, second)));
      from += numbers;
    }
}

}  // namespace film::FILM_ISA
