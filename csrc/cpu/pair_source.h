// Sources of strips of pairs: what strip.h has for floats, with two neighbouring channels of a group in an element. An
// odd number of channels is filled up with a zero.
#pragma once

#include "pairs.h"
#include "strip.h"

namespace film::FILM_ISA {

// 16 numbers of bfloat16, of which the first `count` are loaded and the others are 0.
inline __m512i load_halves(const bf16* p, int64_t count) {
  const auto mask = static_cast<__mmask16>(count >= kLanes<Pair> ? 0xffff : (1u << count) - 1);
  return _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, p));
}

// dst[column * pitch + pair] = channels 2 * pair and 2 * pair + 1 of that column, where src has `channels` rows of
// columns.
inline void turn_pairs(Pair* dst, int64_t pitch, const bf16* src, int64_t row, int64_t channels, int64_t columns) {
  constexpr int L = kLanes<Pair>;
  for (int64_t pair = 0; pair < pitch; pair += L)
    for (int64_t w = 0; w < columns; w += L) {
      const bf16* corner = src + 2 * pair * row + w;
      Vector<Pair> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        const bf16* at = corner + 2 * i * row;
        const int64_t left = channels - 2 * (pair + i);
        const __m512i first = left > 0 ? load_halves(at, columns - w) : __m512i{};
        const __m512i second = left > 1 ? load_halves(at + row, columns - w) : __m512i{};
        block[i] = (Vector<Pair>)_mm512_or_si512(first, _mm512_maskz_slli_epi32(0xffff, second, 16));
      }
      transpose<Pair>(block);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j)
        if (w + j < columns) store_part(dst + (w + j) * pitch + pair, block[j], pitch - pair);
    }
}

// The last number of each column, where there is an odd number of channels.
inline void clear_last(Pair* dst, int64_t pitch, int64_t channels, int64_t columns) {
  if (channels % 2 == 0) return;
  for (int64_t w = 0; w < columns; ++w) dst[w * pitch + pitch - 1] = 0;
}

// Loads some channels of a run, to dst[column][pitch].
inline void load_pairs(Pair* dst, int64_t pitch, const View& view, const ColumnRun& run, const ChannelRange& range) {
  const bf16* src =
      static_cast<const bf16*>(view.data) + run.n * view.n + run.h * view.h + run.first * view.w + range.first * view.c;
  const int64_t columns = run.count, channels = range.count, bytes = channels * static_cast<int64_t>(sizeof(bf16));
  if (view.c == 1 && view.w == channels && channels % 2 == 0) {
    std::memcpy(dst, src, columns * bytes);
  } else if (view.w == 1 && view.c != 1) {
    turn_pairs(dst, pitch, src, view.c, channels, columns);
  } else {
    clear_last(dst, pitch, channels, columns);
    for (int64_t w = 0; w < columns; ++w) {
      auto* at = reinterpret_cast<char*>(dst + w * pitch);
      if (view.c == 1)
        std::memcpy(at, src + w * view.w, bytes);
      else
        for (int64_t c = 0; c < channels; ++c) std::memcpy(at + 2 * c, src + w * view.w + c * view.c, sizeof(bf16));
    }
  }
}

// The input itself. `channels` are those of a group here too, and what is asked for are all pairs of one.
struct PlainPairs {
  const View& view;
  int64_t channels;

  void operator()(Pair* dst, const ColumnRun& run, const ChannelRange& pairs) const {
    load_pairs(dst, pairs.count, view, run, {pairs.first / pairs.count * channels, channels});
  }
};

// Of 32 factors, those of the first or of the second number of each pair.
inline Vector<float> every_other(const float* factors, int64_t first) {
  Vector<Pair> places = lane_numbers<float>() * 2 + static_cast<Pair>(first);
  return (Vector<float>)_mm512_permutex2var_ps((__m512)load(factors), (__m512i)places,
                                               (__m512)load(factors + kLanes<float>));
}

// gamma * u, which is formed in float32 and then rounded. `channels` are those of a group.
struct ModulatedPairs {
  const Problem& p;
  const View& grad;
  const uint8_t* all_bits;      // or null
  const Factors<float>& gamma;  // of which 32 can be read from any pair of a group on
  int64_t channels;

  void operator()(Pair* dst, const ColumnRun& run, const ChannelRange& pairs) const {
    const int64_t group = pairs.first / pairs.count, first = group * channels;
    load_pairs(dst, pairs.count, grad, run, {first, channels});
    const uint8_t* bits = all_bits;
    if (bits != nullptr) bits += ((run.n * p.h.out + run.h) * p.w.out + run.first) * p.bit_row();
    const auto slope = static_cast<float>(p.lower_slope);
    for (int64_t c = 0; c < channels; c += kTogether) {
      const float* factors = gamma.at(run.n, group) + c;
      const Vector<float> even = every_other(factors, 0), odd = every_other(factors, 1);
      const int64_t some = std::min(kTogether, channels - c), count = pairs_of(some);
      Pair* at = dst + c / 2;
      for (int64_t w = 0; w < run.count; ++w, at += pairs.count) {
        const Vector<Pair> g = load_part(at, count);
        const auto first_number = (Vector<float>)(g << 16), second = (Vector<float>)(g & kUpper);
        const uint8_t* row = bits == nullptr ? nullptr : bits + w * p.bit_row();
        store_part(at, modulated(first_number * even, second * odd, bits_at(row, first + c, some), slope), count);
      }
    }
  }

  static constexpr int64_t kTogether = 2 * kLanes<Pair>;

 private:
  static constexpr Pair kUpper = static_cast<Pair>(0xffff0000u);

  // The pairs of numbers of which the bits say whether they are multiplied by the lower slope.
  static Vector<Pair> modulated(Vector<float> first, Vector<float> second, uint32_t upper, float slope) {
    const auto on = (__m512i)pair_up(rounded_to_bf16(first), rounded_to_bf16(second));
    if (slope == 0) return (Vector<Pair>)_mm512_maskz_mov_epi16(upper, on);
    const auto off = (__m512i)pair_up(rounded_to_bf16(first * slope), rounded_to_bf16(second * slope));
    return (Vector<Pair>)_mm512_mask_mov_epi16(off, upper, on);
  }
};

}  // namespace film::FILM_ISA
