// Passes over rows that find statistics.
#pragma once

#include "norm_rows.h"

namespace film::FILM_ISA {

// How many numbers there were, their mean, and the sum of the squares of their distances from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // Those of both together (Chan, Golub and LeVeque, 1979). Nothing cancels, whatever the mean is.
  void add(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, step = other.mean - mean;
    mean += step * (other.count / total);
    squares += other.squares + step * step * (count * (other.count / total));
    count = total;
  }
};

// Of all elements of some rows, which are no more than a block. The first pass finds the mean nearly, the second the
// rest of it and the squares.
template <class A, class... Fetch>
Moments moments_of(int64_t rows, int64_t columns, Rows<const A> x, const Fetch&... soon) {
  constexpr int64_t L = kLanes<A>;
  Vector<A> sums[4] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const A* at = x.row(r);
    int64_t c = 0;
    for (; c + 4 * L <= columns; c += 4 * L)
      for (int i = 0; i < 4; ++i) sums[i] += load(at + c + i * L);
    for (; c < columns; c += L) sums[r % 4] += load_part(at + c, columns - c);
  }
  const double count = static_cast<double>(rows * columns);
  const A near = static_cast<A>(sum_of<A>((sums[0] + sums[1]) + (sums[2] + sums[3])) / count);
  const Vector<A> centre = splat(near);
  Vector<A> rest[4] = {}, squares[4] = {};
  double off = 0, around = 0;
  int64_t chain = 0;
  const auto finish_chain = [&] {
    off += sum_of<A>((rest[0] + rest[1]) + (rest[2] + rest[3]));
    around += sum_of<A>((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (int i = 0; i < 4; ++i) rest[i] = squares[i] = Vector<A>{};
    chain = 0;
  };
  for (int64_t r = 0; r < rows; ++r) {
    const A* at = x.row(r);
    int64_t c = 0;
    for (; c + 4 * L <= columns; c += 4 * L) {
      for (int i = 0; i < 4; ++i) {
        (soon.fetch(r, c + i * L), ...);
        const Vector<A> step = load(at + c + i * L) - centre;
        rest[i] += step, squares[i] += step * step;
      }
      if (++chain == kChain) finish_chain();
    }
    for (; c < columns; c += L) {
      (soon.fetch(r, c), ...);
      const int64_t left = columns - c;
      Vector<A> step = load_part(at + c, left) - centre;
      if (left < L) step = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(left) ? step : Vector<A>{};
      rest[r % 4] += step, squares[r % 4] += step * step;
      if (++chain == kChain) finish_chain();
    }
  }
  finish_chain();
  const double squared = around - off * (off / count);
  return {count, static_cast<double>(near) + off / count, squared < 0 ? 0 : squared};  // and NaN stays NaN
}

template <class A>
double squares_of(int64_t columns, const A* x) {
  double sum = 0;
  for (int64_t first = 0; first < columns; first += 4 * kChain * kLanes<A>) {
    const int64_t end = std::min(columns, first + 4 * kChain * kLanes<A>);
    Vector<A> sums[4] = {};
    int64_t c = first;
    for (; c + 4 * kLanes<A> <= end; c += 4 * kLanes<A>)
      for (int i = 0; i < 4; ++i) {
        const Vector<A> v = load(x + c + i * kLanes<A>);
        sums[i] += v * v;
      }
    for (; c < end; c += kLanes<A>) {
      const Vector<A> v = load_part(x + c, end - c);
      sums[0] += v * v;
    }
    sum += sum_of<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return sum;
}

// Of each column: mean[c], and around[c], the squares around it. `sums` has been made by add_columns.
template <class A, class... Fetch>
void column_moments(int64_t rows, int64_t columns, Rows<const A> x, const A* sums, double* mean, double* around,
                    const Fetch&... soon) {
  constexpr int64_t L = kLanes<A>;
  const A each = 1 / static_cast<A>(rows);
  for_vectors<A>(columns, [&](int64_t c, const auto& memory) {
    const Vector<A> near = memory.load(sums + c) * each;
    double off[L] = {}, squared[L] = {};
    for (int64_t first = 0; first < rows; first += kChain) {
      Vector<A> rest{}, squares{};
      for (int64_t r = first; r < std::min(first + kChain, rows); ++r) {
        (soon.fetch(r, c), ...);
        const Vector<A> step = memory.load(x.row(r) + c) - near;
        rest += step, squares += step * step;
      }
      for (int64_t i = 0; i < L; ++i) off[i] += rest[i], squared[i] += squares[i];
    }
    for (int64_t i = 0; i < std::min(L, columns - c); ++i) {
      const double in_mean = off[i] / rows, all = squared[i] - off[i] * in_mean;
      mean[c + i] = near[i] + in_mean;
      around[c + i] = all < 0 ? 0 : all;
    }
  });
}

}  // namespace film::FILM_ISA
