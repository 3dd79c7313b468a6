// Bits for planes: the channels of a position come 32 at a time, as a word, and columns lie side by side.
#pragma once

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace film::FILM_ISA {

// The bits of 32 channels of each of `count` positions, as words; and back. Copies of a length that the compiler knows
// are single moves.
inline void load_words(int32_t* words, const uint8_t* bits, int64_t bit_row, int64_t first_byte, int64_t count) {
  with_constant<4>(std::min<int64_t>(bit_row - first_byte, 4), [&](auto bytes) {
    constexpr int B = decltype(bytes)::value;
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* at = bits + i * bit_row + first_byte;
      uint32_t word = 0;
      if constexpr (B == 3) {
        word = at[0] | at[1] << 8 | at[2] << 16;
      } else {
        std::memcpy(&word, at, B);
      }
      words[i] = static_cast<int32_t>(word);
    }
  });
}

inline void store_words(uint8_t* bits, const int32_t* words, int64_t bit_row, int64_t first_byte, int64_t count) {
  with_constant<4>(std::min<int64_t>(bit_row - first_byte, 4), [&](auto bytes) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(bits + i * bit_row + first_byte, &words[i], decltype(bytes)::value);
  });
}

// Words of neighbouring columns as lanes beside those of A; and bits added to them.
template <class A>
struct WordsOf {
  typedef int32_t type __attribute__((vector_size(4 * kLanes<A>)));
};

template <class A>
inline Mask<A> words_as_lanes(const int32_t* words) {
  typename WordsOf<A>::type lanes;
  std::memcpy(&lanes, words, sizeof lanes);
  return __builtin_convertvector(lanes, Mask<A>);
}

template <class A>
inline void add_words(int32_t* words, Mask<A> bits) {
  typename WordsOf<A>::type lanes;
  std::memcpy(&lanes, words, sizeof lanes);
  lanes |= __builtin_convertvector(bits, typename WordsOf<A>::type);
  std::memcpy(words, &lanes, sizeof lanes);
}

// gamma * u of the planes of a row, in place of g; `scale` is gamma.
template <class A>
void apply_words(A* planes, int64_t pitch, int64_t columns, int64_t channels, const uint8_t* bits, int64_t bit_row,
                 int32_t* words, A lower_slope, const A* scale) {
  for (int64_t c0 = 0; c0 < channels; c0 += 32) {
    if (bits != nullptr) load_words(words, bits, bit_row, c0 / 8, columns);
    for (int64_t c = c0; c < std::min(c0 + 32, channels); ++c) {
      A* row = planes + c * pitch;
      const A factor = scale[c];
      const int32_t bit = int32_t(uint32_t(1) << (c - c0));
      if (bits == nullptr) {
        for (int64_t w = 0; w < columns; ++w) row[w] *= factor;
      } else if (lower_slope == 0) {  // exactly 0, whatever g and gamma are
        for (int64_t w = 0; w < columns; ++w) row[w] = words[w] & bit ? row[w] * factor : A(0);
      } else {
        for (int64_t w = 0; w < columns; ++w) row[w] = row[w] * factor * (words[w] & bit ? A(1) : lower_slope);
      }
    }
  }
}

}  // namespace film::FILM_ISA
