// The register tile of the weight gradient: kGradRows output channels x V vectors of products, over a unit's positions.
#pragma once

#include "tile.h"
#include "transpose.h"

namespace film::FILM_ISA {

// The sum of the lanes, one after another.
template <class A>
inline double sum_lanes(Vector<A> v) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<A>; ++lane) sum += v[lane];
  return sum;
}

// Rows of positions that are summed over: `columns` in each of `rows`, and from a position's products to the next one's
// `x_column` elements, from a row's to the next one's `x_row`.
struct PositionRows {
  int64_t rows, columns, x_row, x_column;
};

// Where a tile's part of W and dW is, [channel][product] with `row` elements from one channel to the next; dW may be
// null. Of the tile's lanes, which are products, the first `valid` exist.
template <class A>
struct TileWeights {
  const A* weight;
  A* grad_weight;
  int64_t row, valid;
};

// U[channel][product] = the sum over positions of u[channel] * x[product]; then both uses of it: dW += gamma * U and
// dgamma += <W, U>. There are V vectors of products, and half a one behind them where H is 1. With an engine of pairs,
// what is called a position are two of them.
template <class A, int V, int H = 0, class Engine = Floats<A>>
struct UnitTile {
  using E = typename Engine::Element;
  using Sums = TileSums<A, kGradRows, V, H>;
  static constexpr int kVectors = V + H;

  const E* u;       // [position][channel], positions numbered through
  const E* x;       // the first position's products
  int64_t u_pitch;  // elements from one position of u to the next
  PositionRows positions;
  TileWeights<A> weights;
  const A* gamma;         // of these channels
  Vector<A>* grad_gamma;  // of these channels, a sum of <W, U> in each lane; or null
  bool fresh;             // whether dW holds nothing yet
  int64_t chain;          // positions summed in one chain; chains are then added, to keep digits

  // Not inlined: among others' variables the compiler does not keep the sums in registers.
  [[gnu::noinline]] void operator()() const {
    const int64_t rows = positions.rows, columns = positions.columns;
    const E* uu = u;
    Sums sums;
    if (rows * columns <= chain) {
      add_chain(sums, uu, 0, 0, rows, columns);
      return finish(sums);
    }
    // Rows that are longer than a chain are cut into chains, and shorter ones are put together.
    Sums total;
    bool first = true;
    const auto add = [&](int64_t h, int64_t w, int64_t some_rows, int64_t some) {
      add_chain(sums, uu, h, w, some_rows, some);
      total.add(sums, first);
      first = false;
    };
    if (columns >= chain) {
      for (int64_t h = 0; h < rows; ++h)
        for (int64_t w = 0; w < columns; w += chain) add(h, w, 1, std::min(chain, columns - w));
    } else {
      const int64_t together = chain / columns;
      for (int64_t h = 0; h < rows; h += together) add(h, 0, std::min(together, rows - h), columns);
    }
    finish(total);
  }

 private:
  // results = the sums of the products of u and x over columns [w, w + count) of some rows. Leaves `uu` at the next
  // position.
  inline void add_chain(Sums& results, const E*& uu, int64_t h0, int64_t w, int64_t some_rows, int64_t count) const {
    Sums sums;
    sums.clear();
    for (int64_t h = h0; h < h0 + some_rows; ++h) {
      const E* xx = x + h * positions.x_row + w * positions.x_column;
      for (int64_t i = 0; i < count; ++i, xx += positions.x_column, uu += u_pitch) {
        const TileLanes<E, V, H> products(xx);
#pragma GCC unroll 16
        for (int m = 0; m < kGradRows; ++m) sums.template add<Engine>(m, uu[m], products);
      }
    }
    results = sums;
  }

  void finish(const Sums& total) const {
    if (weights.valid == kVectors * kLanes<A>)
      use<true>(total);
    else
      use<false>(total);
  }

  template <bool Whole>
  void use(const Sums& total) const {
    constexpr int L = kLanes<A>;
    // These are copies because no store can change them, so that the compiler need not read them again.
    const A *const w = weights.weight, *const f = gamma;
    A* const dw = weights.grad_weight;
    Vector<A>* const dots = grad_gamma;
    const int64_t pitch = weights.row, in_last = Whole ? L : weights.valid - (kVectors - 1) * L;
    const bool first = fresh;
    // Lanes past the last valid product hold a neighbour's, or anything, and the memory there is a neighbour's.
    const Mask<A> inside = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(in_last);
    const auto part = [&](int m, int v) {
      const Vector<A> sum = total.lanes(m, v);
      return Whole || v + 1 < kVectors ? sum : (inside ? sum : Vector<A>{});
    };
    const auto count = [&](int v) { return Whole || v + 1 < kVectors ? L : in_last; };
    if (dots != nullptr)
#pragma GCC unroll 16
      for (int m = 0; m < kGradRows; ++m) {
        Vector<A> dot{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) dot += part(m, v) * load_part(w + m * pitch + v * L, count(v));
        dots[m] += dot;
      }
    if (dw != nullptr)
#pragma GCC unroll 16
      for (int m = 0; m < kGradRows; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          A* at = dw + m * pitch + v * L;
          const Vector<A> product = f[m] * part(m, v);
          store_part(at, first ? product : load_part(at, count(v)) + product, count(v));
        }
  }
};

}  // namespace film::FILM_ISA
