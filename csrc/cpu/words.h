// Bits for planes: the channels of a position come 32 at a time, as a word, and columns lie side by side.
#pragma once

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace film::FILM_ISA {

// The bits of 32 channels of each of `count` positions, as words; and back.
inline void load_words(int32_t* words, const uint8_t* bits, int64_t bit_row, int64_t first_byte, int64_t count) {
  const int64_t bytes = std::min<int64_t>(bit_row - first_byte, 4);
  bits += first_byte;
  if (bit_row == 1) {
    for (int64_t i = 0; i < count; ++i) words[i] = bits[i];
  } else if (bit_row == 2) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t word;
      std::memcpy(&word, bits + 2 * i, 2);
      words[i] = word;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t word = 0;
      std::memcpy(&word, bits + i * bit_row, bytes);
      words[i] = static_cast<int32_t>(word);
    }
  }
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

inline void store_words(uint8_t* bits, const int32_t* words, int64_t bit_row, int64_t first_byte, int64_t count) {
  const int64_t bytes = std::min<int64_t>(bit_row - first_byte, 4);
  bits += first_byte;
  if (bit_row == 1) {
    for (int64_t i = 0; i < count; ++i) bits[i] = static_cast<uint8_t>(words[i]);
  } else if (bit_row == 2) {
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t word = static_cast<uint16_t>(words[i]);
      std::memcpy(bits + 2 * i, &word, 2);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) std::memcpy(bits + i * bit_row, &words[i], bytes);
  }
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
