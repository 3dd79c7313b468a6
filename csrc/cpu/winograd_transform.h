// Winograd's minimal filtering in one dimension, F(M, R): M results of a filter of R taps from N = M + R - 1 inputs
// with N products instead of M * R (Lavin and Gray 2016, arXiv:1509.09308; by Toom and Cook's construction):
//   y = A^T [(G g) * (B^T d)]         and, for the filter's own gradient,         dg = G^T [(A u) * (B^T d)]
// It is what the product of two polynomials from their values at N points becomes when it is transposed. The points are
// 0, pairs +-p and infinity; sums over the even powers of p serve both of a pair, and so do those over the odd ones.
// The pairs are those with the smallest rounding errors (Barabasz et al. 2020, arXiv:1803.10986, look into this): {2/3,
// 3/2} has half of {1, 2}'s.
#pragma once

#include <algorithm>

#include "simd.h"

namespace film::FILM_ISA {

template <int COUNT>
struct Pairs;
template <>
struct Pairs<1> {
  static constexpr double at[] = {1};
};
template <>
struct Pairs<2> {
  static constexpr double at[] = {2.0 / 3, 3.0 / 2};
};

//
// STRIDE is the kernel's, so that one tile's inputs begin M * STRIDE after the last one's, and POINTS are those of one
// polynomial: the more there are, the more digits are lost.
template <int M_, int R_>
struct Filtering {
  static constexpr int M = M_, R = R_, STRIDE = 1, N = M + R - 1, POINTS = N, P = (N - 2) / 2;
  static_assert(N % 2 == 0, "0, pairs and infinity");

  // Coefficients in x^2 of the product of (x^2 - p^2) over all pairs but `left_out`, lowest power first.
  struct Polynomial {
    double at[P + 1] = {1};
  };
  static constexpr Polynomial product(int left_out) {
    Polynomial q;
    int degree = 0;
    for (int i = 0; i < P; ++i) {
      if (i == left_out) continue;
      ++degree;
      for (int j = degree; j >= 0; --j)
        q.at[j] = (j > 0 ? q.at[j - 1] : 0) - Pairs<P>::at[i] * Pairs<P>::at[i] * (j < degree ? q.at[j] : 0);
    }
    return q;
  }
  static constexpr double power(double p, int exponent) {
    double value = 1;
    for (int i = 0; i < exponent; ++i) value *= p;
    return value;
  }
  // What G divides a point's row by: the product of its distances to the other points.
  static constexpr double divisor(int pair) {
    double value = pair < 0 ? 1 : 2 * power(Pairs<P>::at[pair], 2);
    for (int i = 0; i < P; ++i)
      if (i != pair) value *= (pair < 0 ? 0 : power(Pairs<P>::at[pair], 2)) - power(Pairs<P>::at[i], 2);
    return value;
  }

  // out = B^T d
  template <class V>
  [[gnu::always_inline]] static void data(const V (&d)[N], V (&out)[N]) {
    using A = std::decay_t<decltype(d[0][0])>;
    constexpr Polynomial all = product(-1);
    V zero = static_cast<A>(all.at[0]) * d[0], infinity = static_cast<A>(all.at[0]) * d[1];
#pragma GCC unroll 4
    for (int j = 1; j <= P; ++j) {
      zero += static_cast<A>(all.at[j]) * d[2 * j];
      infinity += static_cast<A>(all.at[j]) * d[2 * j + 1];
    }
    out[0] = zero, out[N - 1] = infinity;
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) {
      const Polynomial q = product(i);
      V even = d[2 * P], odd = d[2 * P - 1];  // the highest coefficient is 1
#pragma GCC unroll 4
      for (int j = 0; j < P - 1; ++j) {
        even += static_cast<A>(q.at[j]) * d[2 * j + 2];
        odd += static_cast<A>(q.at[j]) * d[2 * j + 1];
      }
      const A p = static_cast<A>(Pairs<P>::at[i]);
      out[2 * i + 1] = even + p * odd, out[2 * i + 2] = even - p * odd;
    }
  }

  // y = A^T m
  template <class V>
  [[gnu::always_inline]] static void results(const V (&m)[N], V (&y)[M]) {
    evaluate<M>(m, y, [](int) { return 1.0; });
  }

  // dg = G^T m
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&m)[N], V (&dg)[R]) {
    evaluate<R>(m, dg, [](int pair) { return 1 / divisor(pair); });
  }

  // q = A u
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&u)[M], V (&q)[N]) {
    expand<M>(u, q, [](int) { return 1.0; });
  }

  // w = G g
  template <class V>
  [[gnu::always_inline]] static void filter(const V (&g)[R], V (&w)[N]) {
    expand<R>(g, w, [](int pair) { return 1 / divisor(pair); });
  }

 private:
  // out[j] = the sum over the points of scale * p^j * m. Infinity adds to the last one only.
  template <int COUNT, class V, class Scale>
  [[gnu::always_inline]] static void evaluate(const V (&m)[N], V (&out)[COUNT], const Scale& scale) {
    using A = std::decay_t<decltype(m[0][0])>;
    V even[P], odd[P];
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) even[i] = m[2 * i + 1] + m[2 * i + 2], odd[i] = m[2 * i + 1] - m[2 * i + 2];
#pragma GCC unroll 8
    for (int j = 0; j < COUNT; ++j) {
      V sum = j == 0 ? static_cast<A>(scale(-1)) * m[0] : V{};
      if (j == COUNT - 1) sum = COUNT == 1 ? sum + m[N - 1] : m[N - 1];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i)
        sum += static_cast<A>(scale(i) * power(Pairs<P>::at[i], j)) * (j % 2 == 0 ? even[i] : odd[i]);
      out[j] = sum;
    }
  }

  // out[point] = scale * the sum over j of p^j * in[j]. Infinity takes the last one.
  template <int COUNT, class V, class Scale>
  [[gnu::always_inline]] static void expand(const V (&in)[COUNT], V (&out)[N], const Scale& scale) {
    using A = std::decay_t<decltype(in[0][0])>;
    out[0] = static_cast<A>(scale(-1)) * in[0], out[N - 1] = in[COUNT - 1];
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) {
      V even = static_cast<A>(scale(i)) * in[0], odd{};
#pragma GCC unroll 8
      for (int j = 1; j < COUNT; ++j)
        (j % 2 == 0 ? even : odd) += static_cast<A>(scale(i) * power(Pairs<P>::at[i], j)) * in[j];
      out[2 * i + 1] = even + odd, out[2 * i + 2] = even - odd;
    }
  }
};

// A single tap: nothing is transformed.
template <int M_>
struct Filtering<M_, 1> {
  static constexpr int M = M_, R = 1, STRIDE = 1, N = M, POINTS = N;
  template <class V>
  [[gnu::always_inline]] static void data(const V (&d)[N], V (&out)[N]) {
    std::copy(d, d + N, out);
  }
  template <class V>
  [[gnu::always_inline]] static void results(const V (&m)[N], V (&y)[M]) {
    std::copy(m, m + N, y);
  }
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&m)[N], V (&dg)[1]) {
    dg[0] = m[0];
    for (int i = 1; i < N; ++i) dg[0] += m[i];
  }
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&u)[M], V (&q)[N]) {
    std::copy(u, u + M, q);
  }
  template <class V>
  [[gnu::always_inline]] static void filter(const V (&g)[1], V (&w)[N]) {
    std::fill(w, w + N, g[0]);
  }
};

// Three points: 0, 1 and infinity.
template <>
struct Filtering<2, 2> {
  static constexpr int M = 2, R = 2, STRIDE = 1, N = 3, POINTS = N;
  template <class V>
  [[gnu::always_inline]] static void data(const V (&d)[3], V (&out)[3]) {
    out[0] = d[0] - d[1], out[1] = d[1], out[2] = d[2] - d[1];
  }
  template <class V>
  [[gnu::always_inline]] static void results(const V (&m)[3], V (&y)[2]) {
    y[0] = m[0] + m[1], y[1] = m[1] + m[2];
  }
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&m)[3], V (&dg)[2]) {
    dg[0] = m[0] + m[1], dg[1] = m[1] + m[2];
  }
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&u)[2], V (&q)[3]) {
    q[0] = u[0], q[1] = u[0] + u[1], q[2] = u[1];
  }
  template <class V>
  [[gnu::always_inline]] static void filter(const V (&g)[2], V (&w)[3]) {
    w[0] = g[0], w[1] = g[0] + g[1], w[2] = g[1];
  }
};

// M results of R taps at a stride of 2. Taps with even numbers meet inputs with even numbers, and odd ones odd ones: it
// is the sum of two filterings at a stride of 1, whose points stand one after the other.
template <int M_, int R_>
struct Strided {
  using Even = Filtering<M_, (R_ + 1) / 2>;
  using Odd = Filtering<M_, R_ / 2>;
  static constexpr int M = M_, R = R_, STRIDE = 2, N = Even::N + Odd::N, POINTS = Even::N;

  template <class V>
  [[gnu::always_inline]] static void data(const V (&d)[N], V (&out)[N]) {
    V even[Even::N], odd[Odd::N], at_even[Even::N], at_odd[Odd::N];
    deal(d, even, odd);
    Even::data(even, at_even), Odd::data(odd, at_odd);
    append(at_even, at_odd, out);
  }
  template <class V>
  [[gnu::always_inline]] static void filter(const V (&g)[R], V (&w)[N]) {
    V even[Even::R], odd[Odd::R], at_even[Even::N], at_odd[Odd::N];
    deal(g, even, odd);
    Even::filter(even, at_even), Odd::filter(odd, at_odd);
    append(at_even, at_odd, w);
  }
  template <class V>
  [[gnu::always_inline]] static void gradient(const V (&u)[M], V (&q)[N]) {
    V even[Even::N], odd[Odd::N];
    Even::gradient(u, even), Odd::gradient(u, odd);
    append(even, odd, q);
  }
  template <class V>
  [[gnu::always_inline]] static void results(const V (&m)[N], V (&y)[M]) {
    V even[Even::N], odd[Odd::N], other[M];
    cut(m, even, odd);
    Even::results(even, y), Odd::results(odd, other);
    for (int i = 0; i < M; ++i) y[i] += other[i];
  }
  template <class V>
  [[gnu::always_inline]] static void filter_gradient(const V (&m)[N], V (&dg)[R]) {
    V even[Even::N], odd[Odd::N], of_even[Even::R], of_odd[Odd::R];
    cut(m, even, odd);
    Even::filter_gradient(even, of_even), Odd::filter_gradient(odd, of_odd);
    for (int i = 0; i < R; ++i) dg[i] = i % 2 == 0 ? of_even[i / 2] : of_odd[i / 2];
  }

 private:
  // Elements with even and with odd numbers.
  template <class V, int ALL, int EVEN, int ODD>
  [[gnu::always_inline]] static void deal(const V (&all)[ALL], V (&even)[EVEN], V (&odd)[ODD]) {
    static_assert(EVEN + ODD == ALL);
    for (int i = 0; i < ALL; ++i) (i % 2 == 0 ? even : odd)[i / 2] = all[i];
  }
  // The first ones and the others; and back.
  template <class V, int FIRST, int OTHERS>
  [[gnu::always_inline]] static void cut(const V (&all)[FIRST + OTHERS], V (&first)[FIRST], V (&others)[OTHERS]) {
    std::copy(all, all + FIRST, first), std::copy(all + FIRST, all + FIRST + OTHERS, others);
  }
  template <class V, int FIRST, int OTHERS>
  [[gnu::always_inline]] static void append(const V (&first)[FIRST], const V (&others)[OTHERS],
                                            V (&all)[FIRST + OTHERS]) {
    std::copy(first, first + FIRST, all), std::copy(others, others + OTHERS, all + FIRST);
  }
};

// Transforms both dimensions: every column by `along_h`, and then every row by `along_w`.
template <int HI, int HO, int WI, int WO, class V, class Rows, class Columns>
[[gnu::always_inline]] inline void transform_2d(const V (&in)[HI][WI], V (&out)[HO][WO], const Rows& along_h,
                                                const Columns& along_w) {
  V half[HO][WI];
#pragma GCC unroll 8
  for (int w = 0; w < WI; ++w) {
    V column[HI], image[HO];
#pragma GCC unroll 8
    for (int h = 0; h < HI; ++h) column[h] = in[h][w];
    along_h(column, image);
#pragma GCC unroll 8
    for (int h = 0; h < HO; ++h) half[h][w] = image[h];
  }
#pragma GCC unroll 8
  for (int h = 0; h < HO; ++h) along_w(half[h], out[h]);
}

}  // namespace film::FILM_ISA
