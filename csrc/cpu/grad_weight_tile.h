// The register tile of the weight gradient.
#pragma once

#include <algorithm>

#include "simd.h"

namespace film::FILM_ISA {

// U[k][run .. run + V * lanes] summed over the unit's positions, RUN of them in one chain, whose sums are then added,
// to keep digits; then both uses of it: dotted with W, and times gamma added to dW.
template <class A, int V, int64_t RUN>
struct UnitTile {
  const A *u, *x;  // u[position][u_pitch]; x at the run's first product
  int64_t rows, columns, u_pitch, x_row, x_column;
  const A* weight;        // [channel][row]
  A* grad_weight;         // the same, or null
  bool add;               // to what is there
  int64_t row, valid;     // elements between channels; lanes of the tile that are products
  const A* gamma;         // of these channels
  Vector<A>* grad_gamma;  // lane sums of <W, U>, or null

  void operator()() const {
    constexpr int L = kLanes<A>;
    Vector<A> total[kGradRows][V], sum[kGradRows][V] = {};
    const A* uu = u;
    int64_t chained = 0;
    bool first = true;
    for (int64_t h = 0; h < rows; ++h)
      for (int64_t w0 = 0; w0 < columns; w0 += RUN) {
        const A* xx = x + h * x_row + w0 * x_column;
        const int64_t count = std::min(RUN, columns - w0);
        for (int64_t w = 0; w < count; ++w, xx += x_column, uu += u_pitch) {
          Vector<A> value[V];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) value[v] = load(xx + v * L);
#pragma GCC unroll 16
          for (int m = 0; m < kGradRows; ++m) {
            const A scalar = uu[m];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[m][v] += scalar * value[v];
          }
        }
        chained += count;
        const bool last = h + 1 == rows && w0 + RUN >= columns;
        if (chained < RUN && !last) continue;
        chained = 0;
#pragma GCC unroll 16
        for (int m = 0; m < kGradRows; ++m)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            if (!first) sum[m][v] += total[m][v];
            if (!last) total[m][v] = sum[m][v], sum[m][v] = Vector<A>{};
          }
        first = false;
      }
    // Copies, which no store can change: the compiler need not look again.
    const A *const w = weight, *const f = gamma;
    A* const dw = grad_weight;
    Vector<A>* const dots = grad_gamma;
    const int64_t pitch = row, inside = valid;
    const bool more = add;
    const Mask<A> lanes = lane_numbers<A>();
#pragma GCC unroll 16
    for (int m = 0; m < kGradRows; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)  // lanes past the run hold products of a neighbour, or of nothing
        if (inside < (v + 1) * L)
          sum[m][v] = lanes < static_cast<typename VectorOf<A>::integer>(inside - v * L) ? sum[m][v] : Vector<A>{};
    if (dots != nullptr)
#pragma GCC unroll 16
      for (int m = 0; m < kGradRows; ++m) {
        Vector<A> dot{};
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) dot += sum[m][v] * load(w + m * pitch + v * L);
        dots[m] += dot;
      }
    if (dw != nullptr)
#pragma GCC unroll 16
      for (int m = 0; m < kGradRows; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          A* at = dw + m * pitch + v * L;
          store(at, more ? load(at) + f[m] * sum[m][v] : f[m] * sum[m][v]);
        }
  }
};

}  // namespace film::FILM_ISA
