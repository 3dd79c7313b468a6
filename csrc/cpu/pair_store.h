// Stores the register tile's results as bfloat16: what store_tile.h does for any type, with two positions in an element
// where channels lie apart, so that half as much has to be turned.
#pragma once

#include "pairs.h"
#include "store_tile.h"

namespace film::FILM_ISA {

// dst[channel * apart + position] of `run` positions side by side (at most 16) and 32 channels.
inline void turn_results(bf16* dst, int64_t apart, const float* tile, int64_t pitch, int64_t run, int64_t channels) {
  constexpr int L = kLanes<float>, kHalf = L / 2;
  const bool wide = channels > L;
  Vector<Pair> block[L];
#pragma GCC unroll 8
  for (int i = 0; i < kHalf; ++i) {
    const float* first = tile + std::min<int64_t>(2 * i, run - 1) * pitch;
    const float* second = tile + std::min<int64_t>(2 * i + 1, run - 1) * pitch;
    block[i] = pair_up(rounded_to_bf16(load(first)), rounded_to_bf16(load(second)));
    block[i + kHalf] = wide ? pair_up(rounded_to_bf16(load(first + L)), rounded_to_bf16(load(second + L))) : block[i];
  }
  transpose<Pair>(block);
  const auto mask = static_cast<__mmask16>((1u << run) - 1);
#pragma GCC unroll 16
  for (int c = 0; c < L; ++c) {
    const auto both = (__m512i)block[c];
    if (c < channels) _mm256_mask_storeu_epi16(dst + c * apart, mask, _mm512_castsi512_si256(both));
    if (c + L < channels)
      _mm256_mask_storeu_epi16(dst + (c + L) * apart, mask, _mm512_maskz_extracti64x4_epi64(0xff, both, 1));
  }
}

// A StoreTile of bfloat16.
inline void store_tile_as_pairs(const View& view, const float* tile, int vectors, const Place* places,
                                int64_t place_count, int64_t c0, int64_t count) {
  const auto at = [&](int64_t m) { return places[m].n * view.n + places[m].h * view.h + places[m].w * view.w; };
  bf16* base = static_cast<bf16*>(view.data) + c0 * view.c;
  const int64_t pitch = vectors * kLanes<float>;
  if (view.c == 1) {
    for (int64_t m = 0; m < place_count; ++m) {
      for (int64_t c = 0; c < count; c += kLanes<float>) {
        const auto bits = (__m512i)((Vector<Pair>)rounded_to_bf16(load(tile + m * pitch + c)));
        const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(count - c, 16)) - 1);
        _mm256_mask_storeu_epi16(base + at(m) + c, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
      }
    }
    return;
  }
  for (int64_t m = 0; m < place_count;) {  // runs of columns that lie side by side
    int64_t run = 1;
    while (m + run < place_count && at(m + run) == at(m) + run) ++run;
    if (run > 1) {
      turn_results(base + at(m), view.c, tile + m * pitch, pitch, run, count);
    } else {
      for (int64_t c = 0; c < count; ++c) base[c * view.c + at(m)] = to_bf16(tile[m * pitch + c]);
    }
    m += run;
  }
}

static_assert(kMostPlaces <= 16 && Panels<float>::kWidth == 32);

}  // namespace film::FILM_ISA
