// How much of what a convolution multiplies is not 0, estimated from a sample: few products mean that a direct sum is
// rounded seldom, which Winograd's transforms, where zeros are lost among sums, cannot keep up with.
#pragma once

#include <cmath>

#include "strip.h"

namespace film::FILM_ISA {

// Place number i of a sequence that covers [0, count) evenly and has no period that a tensor could have too.
inline int64_t scattered(int64_t i, int64_t count, double step) {
  const double at = i * step + 0.5;
  return std::min(static_cast<int64_t>((at - std::floor(at)) * count), count - 1);
}

// Of a source as fill_strip has it: pieces of rows, all channels of a group. What is looked at depends on the sizes
// alone.
template <class Source>
double density_of(const Source& source, int64_t batch, int64_t rows, int64_t columns, int64_t groups,
                  int64_t channels) {
  constexpr int64_t kColumns = 32, kMost = 16384, kLeast = 1024, kShare = 8, kPieces = 8;
  constexpr double kRows = 0.6180339887, kStarts = 0.7548776662;
  const int64_t wide = std::min(columns, kColumns), size = wide * channels;
  const int64_t wanted = std::clamp(batch * rows * columns * channels * groups / kShare, kLeast, kMost);
  const int64_t pieces = std::max(wanted / size, kPieces);
  Scratch<float> piece(size);
  int64_t nonzero = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t row = scattered(i, batch * rows, kRows), w = scattered(i, columns - wide + 1, kStarts);
    source(static_cast<float*>(piece), row / rows, row % rows, w, w + wide, i % groups * channels, channels);
    for (int64_t at = 0; at < size; ++at) nonzero += piece[at] != 0;
  }
  return static_cast<double>(nonzero) / (pieces * size);
}

// Of a weight (K, C/groups, kh, kw): some of its filters.
inline double density_of(const Problem& p, const View& weight) {
  constexpr int64_t kFilters = 64;
  constexpr double kStep = 0.6180339887;
  const int64_t filters = p.out_channels * p.group_in(), looked_at = std::min(filters, kFilters);
  int64_t nonzero = 0;
  with_storage<float>(p.dtype, [&](auto element) {
    const auto* data = static_cast<const decltype(element)*>(weight.data);
    for (int64_t i = 0; i < looked_at; ++i) {
      const int64_t filter = scattered(i, filters, kStep);
      const auto* taps = data + filter / p.group_in() * weight.n + filter % p.group_in() * weight.c;
      for (int64_t h = 0; h < p.h.kernel; ++h)
        for (int64_t w = 0; w < p.w.kernel; ++w) nonzero += widen<float>(taps[h * weight.h + w * weight.w]) != 0;
    }
  });
  return static_cast<double>(nonzero) / (looked_at * p.h.kernel * p.w.kernel);
}

}  // namespace film::FILM_ISA
