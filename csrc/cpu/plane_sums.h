// Sums of the weight gradient with columns in the lanes (planes.h): products of u with the planes, and u itself.
#pragma once

#include "transpose.h"
#include "words.h"

namespace film::FILM_ISA {

// Output channels x products of a register tile.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSumChannels = 5, kSumProducts = 5;
#else
constexpr int kSumChannels = 5, kSumProducts = 2;
#endif
// Groups of fewer channels would repeat most of that tile's: theirs has one channel, with more products.
constexpr int kFewSumChannels = 3, kSumProductsAlone = 8;
constexpr int64_t kChainVectors = 64;  // that are added in one chain; a longer one would lose digits

// The sum of each vector's lanes; L vectors at a time, which shrink to one as they are added in pairs.
template <class A, int COUNT>
inline void add_lanes(const Vector<A>* vectors, A* out) {
  constexpr int L = kLanes<A>;
  for (int first = 0; first < COUNT; first += L) {
    Vector<A> block[L] = {};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (first + i < COUNT) block[i] = vectors[first + i];
    add_pairs<A>(block);
    store_part(out + first, block[0], std::min(L, COUNT - first));
  }
}

// So many rows of u and of the planes, and how far it is from one to the next.
struct RowSteps {
  int64_t rows, u, planes;
};

// out[K][R] = sum over rows and columns of u[k] * x[r]. u is 0 past the last column, and x is not looked at there.
template <class A, int K, int R>
void sum_products(const A* const* u, const A* const* x, const RowSteps& steps, int64_t columns, A* out) {
  constexpr int L = kLanes<A>;
  Vector<A> sum[K][R];
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[k][r] = Vector<A>{};  // not = {}, for which the compiler calls the slow "rep stos"
  const Mask<A> inside = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(columns % L);
  const auto add = [&](int64_t at_u, int64_t at_x, auto last) {
    Vector<A> value[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      value[r] = load(x[r] + at_x);
      if (decltype(last)::value) value[r] = inside ? value[r] : Vector<A>{};
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const Vector<A> factor = load(u[k] + at_u);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[k][r] += factor * value[r];
    }
  };
  for (int64_t h = 0; h < steps.rows; ++h) {
    int64_t w = 0;
    for (; w + L <= columns; w += L) add(h * steps.u + w, h * steps.planes + w, std::false_type{});
    if (w < columns) add(h * steps.u + w, h * steps.planes + w, std::true_type{});
  }
  add_lanes<A, K * R>(&sum[0][0], out);
}

// Of one channel, a lane's sum in each of kLanes places.
struct LaneSums {
  double *g, *u;
};

// u = g * s in place of g, of one channel of a row, in whole vectors: 0 past the last column. s is read off the
// channel's bit in `words`. Adds g and u to the channel's sums.
template <class A>
void slope_row(A* row, int64_t columns, const int32_t* words, int32_t bit, A lower_slope, const LaneSums& sums) {
  constexpr int64_t L = kLanes<A>;
  const Vector<A> zero{}, slope = splat<A>(lower_slope);
  const auto add_to = [](double* sum, Vector<A> v) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) sum[i] += v[i];
  };
  for (int64_t begin = 0; begin < columns; begin += kChainVectors * L) {
    Vector<A> g{}, u{};
    for (int64_t w = begin; w < std::min(begin + kChainVectors * L, columns); w += L) {
      Vector<A> v = load(row + w);
      if (columns - w < L) v = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(columns - w) ? v : zero;
      g += v;
      const Mask<A> upper = (words_as_lanes<A>(words + w) & bit) != 0;
      v = upper ? v : (lower_slope == 0 ? zero : v * slope);
      store(row + w, v);
      u += v;
    }
    add_to(sums.g, g);
    add_to(sums.u, u);
  }
}

}  // namespace film::FILM_ISA
