// What the weight gradient multiplies as pairs: neighbouring positions of a row, made of floats in place.
#pragma once

#include "pairs.h"
#include "tile.h"
#include "transpose.h"

namespace film::FILM_ISA {

// Makes each element of a row of a strip a pair: it and the one `step` elements further on, or a zero past the end.
inline void pair_up_row(float* row, int64_t count, int64_t step) {
  constexpr int64_t L = kLanes<float>;
  for (int64_t i = 0; i < count; i += L) {
    const int64_t left = count - i - step;
    const Vector<float> second = left > 0 ? load_part(row + i + step, left) : Vector<float>{};
    store_part(row + i, (Vector<float>)pair_up(load_part(row + i, count - i), second), count - i);
  }
}

// Makes u[position][kGradRows] of some rows u[pair][kGradRows]. A row's last position may be alone, beside a zero.
inline void pair_up_positions(float* u, int64_t rows, int64_t columns) {
  const float* from = u;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t w = 0; w < columns; w += 2, u += kGradRows) {
      uint16_t numbers[2 * kGradRows];
      for (int64_t c = 0; c < kGradRows; ++c) {
        numbers[2 * c] = to_bf16(from[c]).raw;
        numbers[2 * c + 1] = w + 1 < columns ? to_bf16(from[kGradRows + c]).raw : 0;
      }
      std::memcpy(u, numbers, sizeof numbers);
      from += std::min<int64_t>(columns - w, 2) * kGradRows;
    }
}

}  // namespace film::FILM_ISA
