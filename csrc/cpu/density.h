// What a convolution multiplies, estimated from some of it. Where few products matter, a direct sum is rounded seldom
// and has nearly all digits. Winograd's tiles do not, since transformed tiles and filters have neither zeros nor
// channels that count for nothing.
#pragma once

#include <cmath>
#include <numeric>
#include <vector>

#include "strip.h"

namespace film::FILM_ISA {

// Number i of a sequence that covers [0, count) evenly and has no period that a tensor could have too.
inline int64_t scattered(int64_t i, int64_t count, double step) {
  const double at = i * step + 0.5;
  return std::min(static_cast<int64_t>((at - std::floor(at)) * count), count - 1);
}
constexpr double kGolden = 0.6180339887, kPlastic = 0.7548776662;  // steps of such sequences

struct Sample {
  double density;                   // what share of the elements is not 0
  double coherence = 0;             // of weights: 1 where all taps of a filter are the same, about 1 / taps in noise
  std::vector<float> energy;        // the sum of squares of each source channel of each group
  std::vector<float> of_mean = {};  // of a source: how much of it is the channel's mean
};

// Looks at snippets of rows of a source (as fill_strip has it), with all channels of a group. Which ones depends on the
// sizes alone.
template <class Source>
Sample sample_source(const Source& source, int64_t batch, int64_t rows, int64_t columns, int64_t groups,
                     int64_t channels) {
  constexpr int64_t kColumns = 32, kMost = 16384, kLeast = 1024, kShare = 8, kSnippets = 8;
  const int64_t wide = std::min(columns, kColumns), size = wide * channels;
  const int64_t wanted = std::clamp(batch * rows * columns * channels * groups / kShare, kLeast, kMost);
  const int64_t snippets = std::max(wanted / size, kSnippets);
  Scratch<float> snippet(size);
  std::vector<float> energy(groups * channels), sums(groups * channels), of_mean(groups * channels);
  std::vector<int32_t> nonzero(channels);
  for (int64_t i = 0; i < snippets; ++i) {
    const int64_t row = scattered(i, batch * rows, kGolden), w = scattered(i, columns - wide + 1, kPlastic);
    const int64_t first = i % groups * channels;
    source(static_cast<float*>(snippet), {row / rows, row % rows, w, wide}, {first, channels});
    for (int64_t at = 0; at < wide; ++at) {
      const float* x = snippet + at * channels;
      for (int64_t c = 0; c < channels; ++c)
        energy[first + c] += x[c] * x[c], sums[first + c] += x[c], nonzero[c] += x[c] != 0;
    }
  }
  for (int64_t c = 0; c < groups * channels; ++c) {
    const int64_t seen = (snippets - c / channels + groups - 1) / groups * wide;
    of_mean[c] = seen > 0 ? sums[c] * sums[c] / seen : 0;
  }
  const int64_t total = std::accumulate(nonzero.begin(), nonzero.end(), int64_t(0));
  return {static_cast<double>(total) / (snippets * size), 0, std::move(energy), std::move(of_mean)};
}

// Looks at some of the filters of each source channel of a weight (K, C/groups, kh, kw). Source channels are the first
// dimension where it is `transposed`.
inline Sample sample_weight(const Problem& p, const View& weight, bool transposed) {
  constexpr int64_t kFilters = 2;
  const int64_t sources = transposed ? p.group_out() : p.group_in(), others = transposed ? p.group_in() : p.group_out();
  const int64_t looked_at = std::min(others, kFilters), taps = p.h.kernel * p.w.kernel;
  std::vector<float> energy(p.groups * sources);
  int64_t nonzero = 0;
  double all = 0, together = 0;
  with_storage<float>(p.dtype, [&](auto element) {
    const auto* data = static_cast<const decltype(element)*>(weight.data);
    for (int64_t s = 0; s < p.groups * sources; ++s)
      for (int64_t i = 0; i < looked_at; ++i) {
        const int64_t other = scattered(s * looked_at + i, others, kGolden), own = s % sources;
        const int64_t k = s / sources * p.group_out() + (transposed ? own : other), c = transposed ? other : own;
        float sum = 0, squares = 0;
        for (int64_t h = 0; h < p.h.kernel; ++h)
          for (int64_t w = 0; w < p.w.kernel; ++w) {
            const float x = widen<float>(data[k * weight.n + c * weight.c + h * weight.h + w * weight.w]);
            nonzero += x != 0, sum += x, squares += x * x;
          }
        energy[s] += squares, all += squares, together += sum * sum;
      }
  });
  return {static_cast<double>(nonzero) / (p.groups * sources * looked_at * taps), together / (taps * all),
          std::move(energy)};
}

// What decides how many digits a pass may lose.
struct Spread {
  Spread(const Sample& source, const Sample& weight)
      : density(source.density * weight.density), coherence(weight.coherence) {
    double sum = 0, squares = 0, of_means = 0;
    for (size_t i = 0; i < source.energy.size(); ++i) {
      const double energy = static_cast<double>(source.energy[i]) * weight.energy[i];
      sum += energy, squares += energy * energy;
      if (!source.of_mean.empty()) of_means += static_cast<double>(source.of_mean[i]) * weight.energy[i];
    }
    channels = sum * sum / squares;
    mean = of_means / sum;
  }
  double density;    // of the products
  double channels;   // how many channels count: all where their energies are equal, 1 where one outdoes the others
  double coherence;  // of the weight
  double mean;       // how much of the source's squares the means of its channels make
};

}  // namespace film::FILM_ISA
