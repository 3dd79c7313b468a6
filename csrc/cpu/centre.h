// What keeps dgamma's digits where the bias takes the input's mean away again. With any number m for each source
// channel, and tap sums w = sum over taps of W,
//   dgamma = sum_p u * z = <W, U'> + (b + <w, m>) * sum_p u,     U' = the weight gradient of u from x - m,
// and U = U' + m * sum_p u at every tap. Without it <W, U> and b * sum_p u can both be far larger than their sum, and
// leave it their rounding errors. m is the mean over a unit (a block of positions of one sample). It is taken out of
// the zeros of padding too, which become -m: the formula holds for every element that a tap meets. Means that are small
// beside the elements are left where they are.
#pragma once

#include <cmath>
#include <vector>

#include "patches.h"
#include "planes.h"

namespace film::FILM_ISA {

// The type of tap sums and of <w, m>, which are as large as what cancels and need more digits than the rest.
template <class A>
using Wide = std::conditional_t<std::is_same_v<A, float>, double, long double>;

// Whether channels have means that are more than chance and not small beside their elements. `squared_means` is the sum
// of the means' squares, `squares` that of the mean squares, and `samples` how many elements of each channel they are
// from. NaN says no.
inline bool has_mean(double squared_means, double squares, int64_t samples) {
  return squared_means > (1.0 / 16 + 2.0 / samples) * squares;
}

template <class A>
inline A finite_mean(A sum, int64_t count) {
  const A mean = sum / static_cast<A>(count);
  return std::isfinite(mean) ? mean : A(0);  // x - m would spread what is not finite over its whole channel
}

// Takes the mean of each channel out of the strip of a unit, and sets `mean` to them. Returns false, and leaves the
// strip as it is, where the means are small.
template <class A>
bool centre_strip(A* strip, A* mean, const Extent& unit, const Taps& h, const Taps& w, int64_t channels) {
  constexpr int64_t kSamples = 32, L = kLanes<A>;
  const int64_t rows = h.extent(unit.rows), columns = w.extent(unit.columns);
  const Inside high(h, unit.h0, rows), wide(w, unit.w0, columns);
  const int64_t count = high.count() * wide.count();
  if (count == 0) return false;
  const auto pixel = [&](int64_t i) {
    return strip + ((high.begin + i / wide.count()) * columns + wide.begin + i % wide.count()) * channels;
  };
  std::fill(mean, mean + channels, A(0));
  const int64_t step = (count + kSamples - 1) / kSamples, samples = (count + step - 1) / step;
  Vector<A> lanes{};
  double squares = 0;
  for (int64_t i = 0; i < count; i += step) {
    const A* x = pixel(i);
    for (int64_t c = 0; c < channels; ++c) mean[c] += x[c];
    int64_t c = 0;
    for (; c + L <= channels; c += L) lanes += load(x + c) * load(x + c);
    for (; c < channels; ++c) squares += x[c] * x[c];
  }
  for (int lane = 0; lane < L; ++lane) squares += lanes[lane];
  double squared_means = 0;
  for (int64_t c = 0; c < channels; ++c) squared_means += std::pow(static_cast<double>(mean[c]) / samples, 2);
  if (!has_mean(squared_means, squares / samples, samples)) return false;

  std::fill(mean, mean + channels, A(0));
  for (int64_t i = 0; i < count; ++i) {
    const A* x = pixel(i);
    for (int64_t c = 0; c < channels; ++c) mean[c] += x[c];
  }
  for (int64_t c = 0; c < channels; ++c) mean[c] = finite_mean(mean[c], count);
  for (int64_t i = 0; i < rows * columns; ++i)
    for (int64_t c = 0; c < channels; ++c) strip[i * channels + c] -= mean[c];
  return true;
}

// Adds the elements of a run and their squares, lane by lane.
template <class A>
inline void add_run(const A* x, int64_t count, Vector<A>& sum, Vector<A>& squares) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    Vector<A> v = load(x + i);
    if (count - i < kLanes<A>)
      v = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(count - i) ? v : Vector<A>{};
    sum += v;
    squares += v * v;
  }
}

// The same for the planes of a unit, which are some destination rows of all columns.
template <class A>
bool centre_planes(const Planes<A>& planes, A* mean, const RowRange& rows, const Taps& h, const Taps& w) {
  constexpr int64_t kRows = 2;  // that are looked at first
  const PlaneShape& shape = planes.shape();
  const int64_t extent = h.extent(rows.count);
  const Inside high(h, rows.first, extent), wide(w, 0, w.extent(w.count));
  if (high.count() * wide.count() == 0) return false;
  // The means of every step-th row; sets sums of their squares and of the mean squares.
  double squared_means, squares;
  const auto find_means = [&](int64_t step) {
    const int64_t count = (high.count() + step - 1) / step * wide.count();
    squared_means = squares = 0;
    for (int64_t c = 0; c < planes.channels(); ++c) {
      Vector<A> sum{}, square{};
      for (int64_t row = high.begin; row < high.end; row += step)
        for (int64_t phase = 0; phase < shape.phases; ++phase) {
          const int64_t first = (std::max(wide.begin, phase) - phase + shape.phases - 1) / shape.phases;
          const int64_t last = (std::max(wide.end, phase) - phase + shape.phases - 1) / shape.phases;
          add_run(planes.of_channel(c) + row * shape.row() + phase * shape.pitch + first, last - first, sum, square);
        }
      A total = 0, total_squares = 0;
      for (int lane = 0; lane < kLanes<A>; ++lane) total += sum[lane], total_squares += square[lane];
      mean[c] = finite_mean(total, count);
      squared_means += static_cast<double>(mean[c]) * mean[c], squares += static_cast<double>(total_squares) / count;
    }
    return has_mean(squared_means, squares, count);
  };
  if (!find_means((high.count() + kRows - 1) / kRows)) return false;
  find_means(1);
  for (int64_t c = 0; c < planes.channels(); ++c)
    for (int64_t i = 0; i < extent * shape.row(); ++i) planes.of_channel(c)[i] -= mean[c];
  return true;
}

// w, the sum of each filter's taps, and its dot product with means.
template <class A>
class TapSums {
 public:
  TapSums(int64_t channels, int64_t sources) : sources_(sources), sums_(channels * sources) {}

  // Sets w of output channel k from its filters, where tap t of source channel c is at t * tap + c * source.
  void set(int64_t k, const A* filters, int64_t taps, int64_t tap, int64_t source) {
    Wide<A>* sums = sums_.data() + k * sources_;
    for (int64_t t = 0; t < taps; ++t) {
      if (source == 1)
        for (int64_t c = 0; c < sources_; ++c) sums[c] += filters[t * tap + c];
      else
        for (int64_t c = 0; c < sources_; ++c) sums[c] += filters[t * tap + c * source];
    }
  }

  // shift[k - first] = <w[k], m> for output channels [first, last).
  void dot(const A* mean, int64_t first, int64_t last, long double* shift) const {
    constexpr int64_t kChains = 8;  // additions that need not wait for one another
    for (int64_t k = first; k < last; ++k) {
      const Wide<A>* sums = sums_.data() + k * sources_;
      Wide<A> chains[kChains] = {};
      int64_t c = 0;
      for (; c + kChains <= sources_; c += kChains)
        for (int64_t i = 0; i < kChains; ++i) chains[i] += sums[c + i] * mean[c + i];
      for (; c < sources_; ++c) chains[0] += sums[c] * mean[c];
      Wide<A> total = 0;
      for (Wide<A> chain : chains) total += chain;
      shift[k - first] = total;
    }
  }

 private:
  int64_t sources_;
  std::vector<Wide<A>> sums_;  // [output channel][source channel], all 0 before they are set
};

}  // namespace film::FILM_ISA
