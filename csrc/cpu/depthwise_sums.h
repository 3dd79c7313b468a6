// Sums of the weight gradient of a depthwise convolution, over a run of columns of one row: lanes are channels, and the
// sums of the taps of a kernel row stay in registers.
#pragma once

#include <cmath>

#include "depthwise_tile.h"

namespace film::FILM_ISA {

// Columns that are added in one chain; a longer one would lose digits, of which plain PyTorch keeps more in float64.
template <class A>
constexpr int64_t kDepthwiseChain = sizeof(A) == 8 ? 16 : 64;

// Columns [first, last) of the destination, and what they meet in a row of the source: its channels at column 0, the
// distance from column to column, how many columns there are, and which the first tap of destination column 0 meets.
template <class A>
struct DepthwiseRun {
  int64_t first, last;
  const A* x;
  int64_t pitch, columns, low;

  // The destination columns from which on, and up to which, tap t meets no padding.
  int64_t begin_inside(int64_t t, int64_t step) const {
    return std::clamp((std::max<int64_t>(-low - t, 0) + step - 1) / step, first, last);
  }
  int64_t end_inside(int64_t t, int64_t step) const {
    const int64_t reach = columns - low - t;
    return std::clamp(reach <= 0 ? 0 : (reach + step - 1) / step, begin_inside(t, step), last);
  }
};

// sum[t] += sum over columns of u * (x - mean) for the taps t of a row of the kernel. u has a vector for each column
// from the first on. Products with padding are left out.
template <class A, int TAPS, int STEP, bool CENTRED>
void add_depthwise_products(const A* u, const DepthwiseRun<A>& run, Vector<A> mean, A* sums) {
  constexpr int J = 4, L = kLanes<A>, kExtent = (J - 1) * STEP + TAPS;
  constexpr int kChains = TAPS < 4 ? 2 : 1;  // of each sum, where there are few: an addition waits for the one before
  Vector<A> sum[kChains][TAPS];
#pragma GCC unroll 2
  for (int chain = 0; chain < kChains; ++chain)
#pragma GCC unroll 8
    for (int t = 0; t < TAPS; ++t) sum[chain][t] = Vector<A>{};
  const auto element = [&](const A* at) {
    const Vector<A> v = load(at);
    return CENTRED ? v - mean : v;
  };
  const auto add_column = [&](int64_t w) {
    const int64_t at = w * STEP + run.low;
    const Vector<A> factor = load(u + (w - run.first) * L);
    const A* x = run.x + at * run.pitch;
#pragma GCC unroll 8
    for (int t = 0; t < TAPS; ++t)
      if (at + t >= 0 && at + t < run.columns) sum[0][t] += element(x + t * run.pitch) * factor;
  };
  const int64_t begin = run.begin_inside(0, STEP), end = run.end_inside(TAPS - 1, STEP);
  int64_t w = run.first;
  for (; w < begin; ++w) add_column(w);
  for (; w + J <= end; w += J) {
    const A *x = run.x + (w * STEP + run.low) * run.pitch, *factors = u + (w - run.first) * L;
    Vector<A> factor[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) factor[j] = load(factors + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < kExtent; ++i) {
      const Vector<A> v = element(x + i * run.pitch);
#pragma GCC unroll 8
      for (int t = 0; t < TAPS; ++t)
        if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < J)
          sum[(i - t) / STEP % kChains][t] += v * factor[(i - t) / STEP];
    }
  }
  for (; w < run.last; ++w) add_column(w);
#pragma GCC unroll 8
  for (int t = 0; t < TAPS; ++t) {
    const Vector<A> total = kChains == 2 ? sum[0][t] + sum[kChains - 1][t] : sum[0][t];
    store(sums + t * L, load(sums + t * L) + total);
  }
}

template <class A>
using AddDepthwiseProducts = void (*)(const A* u, const DepthwiseRun<A>&, Vector<A> mean, A* sums);

template <class A>
AddDepthwiseProducts<A> depthwise_adder(int64_t taps, int64_t step, bool centred) {
  AddDepthwiseProducts<A> found = nullptr;
  with_constant<kMostDepthwiseTaps>(taps, [&](auto number) {
    constexpr int TAPS = decltype(number)::value;
    if (step == 1)
      found = centred ? add_depthwise_products<A, TAPS, 1, true> : add_depthwise_products<A, TAPS, 1, false>;
    else
      found = centred ? add_depthwise_products<A, TAPS, 2, true> : add_depthwise_products<A, TAPS, 2, false>;
  });
  return found;
}

// A vector of sums. Of doubles what each addition rounds off (Knuth's TwoSum) is summed too.
template <class A>
class ExactSum {
 public:
  void add(Vector<A> v) {
    const Vector<A> before = sum_;
    sum_ += v;
    if constexpr (sizeof(A) == 8) {
      const Vector<A> part = sum_ - before;
      lost_ += (before - (sum_ - part)) + (v - part);
    }
  }
  // Adds them to wider ones.
  template <class W>
  void add_to(W* sums) const {
    for (int lane = 0; lane < kLanes<A>; ++lane) {
      sums[lane] += sum_[lane];
      if constexpr (sizeof(A) == 8) sums[lane] += std::isfinite(lost_[lane]) ? lost_[lane] : 0;
    }
  }

 private:
  Vector<A> sum_{}, lost_{};
};

// u = g * slope(bits) of the columns of a run, a vector each, and the sums of g and u.
template <class A>
struct SlopedColumns {
  ExactSum<A> g, u;

  // `bits` are those of the first column, or null; `lanes` are channels.
  void load_to(A* out, const A* grad, int64_t pitch, int64_t count, const uint8_t* bits, int64_t bit_row, int64_t c,
               int64_t lanes, A lower) {
    const Vector<A> zero{}, slope = splat(lower);
    for (int64_t j = 0; j < count; ++j) {
      const Vector<A> v = load(grad + j * pitch + c);
      g.add(v);
      Vector<A> sloped = v;
      if (bits != nullptr) {
        const Mask<A> upper = from_bits<A>(bits_at(bits + j * bit_row, c, lanes));
        sloped = upper ? v : (lower == 0 ? zero : v * slope);
      }
      u.add(sloped);
      store(out + j * kLanes<A>, sloped);
    }
  }
};

}  // namespace film::FILM_ISA
