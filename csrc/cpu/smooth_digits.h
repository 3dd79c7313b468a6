// Whether z = conv(x, W) + b has the digits that a smooth activation asks for, where tiles of Winograd's sum it.
//
// A tile's results all have the rounding errors of its largest elements. Under a piecewise-linear activation these make
// the largest results, too, beside which the error does not count. A smooth one saturates there, in value or in slope:
// what counts then are the small results in the same tile, which have lost their digits. And the roundings of filters
// are the same in all tiles, so that a mean of the input, which the bias may take away again, gives z an error in
// common that the sums of dgamma do not average out.
#pragma once

#include <cmath>
#include <vector>

#include "kernels.h"
#include "winograd_tiles.h"

namespace film::FILM_ISA {

// How many times as large as their mean the largest magnitude may be,
constexpr float kLoudest = 128;
// and how much of the sum of squares the channels' means may make.
constexpr double kMostMean = 0.5;

// The largest magnitude and the sum of all of them.
struct Magnitudes {
  float largest = 0;
  double sum = 0;

  void add(const Magnitudes& other) {
    largest = std::max(largest, other.largest);
    sum += other.sum;
  }
};

// Of a run of elements, `step` apart.
inline Magnitudes magnitudes_of_run(const float* x, int64_t step, int64_t count) {
  constexpr int64_t kPiece = 1024;  // that are summed in one chain for each lane
  constexpr int L = kLanes<float>;
  Magnitudes found;
  if (step != 1) {
    for (int64_t i = 0; i < count; ++i) found.add({std::abs(x[i * step]), std::abs(x[i * step])});
    return found;
  }
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t end = std::min(first + kPiece, count);
    Vector<float> largest{}, sum{};
    for (int64_t i = first; i < end; i += L) {
      const Vector<float> v = end - i >= L ? load(x + i) : load_part(x + i, end - i), size = v < 0 ? -v : v;
      largest = size > largest ? size : largest;
      sum += size;
    }
    for (int lane = 0; lane < L; ++lane) found.add({largest[lane], sum[lane]});
  }
  return found;
}

// Of all elements of a tensor (N, C, H, W). The sums are the same with any number of threads.
inline Magnitudes magnitudes_of(const Problem& p, const View& x) {
  const bool pixels = x.c == 1 && x.w != 1;
  const int64_t inner = pixels ? p.in_channels : p.w.in, step = pixels ? x.c : x.w;
  const int64_t outer = pixels ? p.w.in : p.in_channels, of_outer = pixels ? x.w : x.c;
  const bool side_by_side = step == 1 && of_outer == inner;
  std::vector<Magnitudes> of_rows(p.batch * p.h.in);
  parallel(p.batch * p.h.in, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = static_cast<const float*>(x.data) + i / p.h.in * x.n + i % p.h.in * x.h;
      if (side_by_side)
        of_rows[i] = magnitudes_of_run(row, 1, outer * inner);
      else
        for (int64_t j = 0; j < outer; ++j) of_rows[i].add(magnitudes_of_run(row + j * of_outer, step, inner));
    }
  });
  Magnitudes all;
  for (const Magnitudes& row : of_rows) all.add(row);
  return all;
}

// Whether tiles may sum the products of an input and a weight of which find_spread() tells. The types of 16 bits have
// digits to spare.
template <class Spreading>
bool has_digits_for_smooth(const Problem& p, const View& input, const Spreading& find_spread) {
  if (p.dtype != DType::f32) return true;
  const Spread spread = find_spread();
  if (!(spread.mean <= kMostMean)) return false;
  const Magnitudes found = magnitudes_of(p, input);
  const double count = static_cast<double>(p.batch) * p.in_channels * p.h.in * p.w.in;
  return found.largest < kLoudest * found.sum / count;  // which infinities and NaN are not
}

}  // namespace film::FILM_ISA
