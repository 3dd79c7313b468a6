// Filters and tiles to Winograd's points, and results and sums back from them, a vector of channels at a time.
//
// Where A is double, nothing but what is stored is rounded: products keep their digits only if what they are made from
// has them, and a transform in float rounds every sum and multiple on its way.
#pragma once

#include "winograd_tiles.h"

namespace film::FILM_ISA {

template <class A>
struct FloatsOf {  // as many floats as a vector of A has lanes
  typedef float type __attribute__((vector_size(kLanes<A> * sizeof(float))));
};

template <class A>
inline Vector<A> load_floats(const float* p) {
  typename FloatsOf<A>::type v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vector<A>);
}

// Returns what was stored.
template <class A>
inline Vector<A> store_floats(float* p, Vector<A> v) {
  const auto rounded = __builtin_convertvector(v, typename FloatsOf<A>::type);
  std::memcpy(p, &rounded, sizeof rounded);
  return __builtin_convertvector(rounded, Vector<A>);
}

// Whether all lanes are 0, as products of 0 with finite numbers are.
template <class A>
inline bool is_zero(Vector<A> v) {
  for (int lane = 0; lane < kLanes<A>; ++lane)
    if (v[lane] != 0) return false;
  return true;
}

// A vector of channels at every point: `step` elements from one point to the next.
template <class F>
struct AtPoints {
  F* first;
  int64_t step;
};

// Elements from one row of pixels or taps to the next, and from one of their columns to the next.
struct Pitches {
  int64_t row, column;
};

// The rows and columns of a tile or a filter that exist. Where they are fewer than T has, the others count as zeros.
struct Size {
  int64_t rows, columns;
};

// G g G^T of filters.
template <class T, class A = float>
inline void transform_filter(AtPoints<float> points, const float* taps, Pitches pitches, Size size) {
  constexpr int RH = T::H::R, RW = T::W::R, NH = T::H::N, NW = T::W::N, L = kLanes<A>;
  // Copies, which no store can change.
  const int64_t line = pitches.row, tap = pitches.column, step = points.step, rows = size.rows, columns = size.columns;
  for (int lane = 0; lane < kLanes<float>; lane += L) {
    Vector<A> filter[RH][RW], out[NH][NW];
    for (int h = 0; h < RH; ++h)
      for (int w = 0; w < RW; ++w)
        filter[h][w] = h < rows && w < columns ? load_floats<A>(taps + h * line + w * tap + lane) : Vector<A>{};
    transform_2d(
        filter, out, [](const auto& in, auto& out) { T::H::filter(in, out); },
        [](const auto& in, auto& out) { T::W::filter(in, out); });
    for (int h = 0; h < NH; ++h)
      for (int w = 0; w < NW; ++w) store_floats<A>(points.first + (h * NW + w) * step + lane, out[h][w]);
  }
}

// B^T d B of an input's tile.
template <class T>
inline void transform_tile(AtPoints<float> points, const float* pixels, Pitches pitches) {
  constexpr int NH = T::H::N, NW = T::W::N;
  Vector<float> d[NH][NW], out[NH][NW];
#pragma GCC unroll 8
  for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) d[i][j] = load(pixels + i * pitches.row + j * pitches.column);
  transform_2d(
      d, out, [](const auto& in, auto& out) { T::H::data(in, out); },
      [](const auto& in, auto& out) { T::W::data(in, out); });
#pragma GCC unroll 8
  for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) store(points.first + (i * NW + j) * points.step, out[i][j]);
}

// A^T m A of the products of a tile, for `width` channels. Returns whether all results are finite.
template <class T, class A>
inline bool transform_results(float* results, Pitches pitches, AtPoints<const float> products, int64_t width,
                              Size size) {
  constexpr int NH = T::H::N, NW = T::W::N, MH = T::H::M, MW = T::W::M;
  // Copies, which no store can change.
  const int64_t line = pitches.row, pixel = pitches.column, step = products.step, high = size.rows, wide = size.columns;
  Vector<A> zero_or_nan{};
  for (int64_t v = 0; v < width; v += kLanes<A>) {
    Vector<A> m[NH][NW], y[MH][MW];
#pragma GCC unroll 8
    for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < NW; ++j) m[i][j] = load_floats<A>(products.first + (i * NW + j) * step + v);
    transform_2d(
        m, y, [](const auto& in, auto& out) { T::H::results(in, out); },
        [](const auto& in, auto& out) { T::W::results(in, out); });
#pragma GCC unroll 4
    for (int i = 0; i < MH; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < MW; ++j) {
        if (i < high && j < wide) zero_or_nan += 0 * store_floats<A>(results + i * line + j * pixel + v, y[i][j]);
      }
  }
  return is_zero<A>(zero_or_nan);
}

// G^T m G of the sums over all tiles of a gradient's and an input's products: the gradient of the filter's taps.
template <class T>
[[gnu::always_inline]] inline void transform_sums(Vector<float> (&taps)[T::H::R][T::W::R], AtPoints<const float> sums) {
  constexpr int NH = T::H::N, NW = T::W::N;
  Vector<float> m[NH][NW];
  for (int i = 0; i < NH; ++i)
    for (int j = 0; j < NW; ++j) m[i][j] = load(sums.first + (i * NW + j) * sums.step);
  transform_2d(
      m, taps, [](const auto& in, auto& out) { T::H::filter_gradient(in, out); },
      [](const auto& in, auto& out) { T::W::filter_gradient(in, out); });
}

}  // namespace film::FILM_ISA
