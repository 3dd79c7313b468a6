// Filters, tiles and results to Winograd's points and back, a vector of channels at a time.
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

// G g G^T of a vector of filters of so many rows and columns, zeros past those, whose taps are `line` and `tap` apart,
// to points `step` apart.
template <class T, class A = float>
inline void transform_filter(float* points, int64_t step, const float* taps, int64_t line, int64_t tap, int64_t rows,
                             int64_t columns) {
  constexpr int RH = T::H::R, RW = T::W::R, NH = T::H::N, NW = T::W::N, L = kLanes<A>;
  for (int lane = 0; lane < kLanes<float>; lane += L) {
    Vector<A> filter[RH][RW], out[NH][NW];
    for (int h = 0; h < RH; ++h)
      for (int w = 0; w < RW; ++w)
        filter[h][w] = h < rows && w < columns ? load_floats<A>(taps + h * line + w * tap + lane) : Vector<A>{};
    transform_2d(
        filter, out, [](const auto& in, auto& out) { T::H::filter(in, out); },
        [](const auto& in, auto& out) { T::W::filter(in, out); });
    for (int h = 0; h < NH; ++h)
      for (int w = 0; w < NW; ++w) store_floats<A>(points + (h * NW + w) * step + lane, out[h][w]);
  }
}

// B^T d B of a tile, to points `step` apart; its rows and columns in the strip are `line` and `pixel` apart.
template <class T>
inline void transform_tile(float* points, int64_t step, const float* corner, int64_t line, int64_t pixel) {
  constexpr int NH = T::H::N, NW = T::W::N;
  Vector<float> d[NH][NW], out[NH][NW];
#pragma GCC unroll 8
  for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) d[i][j] = load(corner + i * line + j * pixel);
  transform_2d(
      d, out, [](const auto& in, auto& out) { T::H::data(in, out); },
      [](const auto& in, auto& out) { T::W::data(in, out); });
#pragma GCC unroll 8
  for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NW; ++j) store(points + (i * NW + j) * step, out[i][j]);
}

// A^T m A of points `step` apart, the first `high` x `wide` of its results to rows and columns `line` and `pixel`
// apart, for `width` channels. Returns whether they are finite.
template <class T, class A>
inline bool transform_results(float* results, int64_t line, int64_t pixel, const float* points, int64_t step,
                              int64_t width, int64_t high, int64_t wide) {
  constexpr int NH = T::H::N, NW = T::W::N, MH = T::H::M, MW = T::W::M;
  Vector<A> zero_or_nan{};
  for (int64_t v = 0; v < width; v += kLanes<A>) {
    Vector<A> m[NH][NW], y[MH][MW];
#pragma GCC unroll 8
    for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < NW; ++j) m[i][j] = load_floats<A>(points + (i * NW + j) * step + v);
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

}  // namespace film::FILM_ISA
