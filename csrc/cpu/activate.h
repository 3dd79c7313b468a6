// The activations and their derivatives, a vector at a time.
//
// Each is an object made from what it multiplies by on its lower branch, with value<A>(v) = act(v), slope<A>(v) =
// act'(v), and both<A>(v) for the cost of little more than one. Infinities and NaN give what PyTorch gives in double.
#pragma once

#include <cmath>

#include "../problem.h"
#include "exponential.h"

namespace film::FILM_ISA {

template <class A>
struct ValueAndSlope {
  Vector<A> value, slope;
};

// The sign bit of each lane, alone.
template <class A>
inline typename ExponentialOf<A>::Bits sign_of(Vector<A> v) {
  using Bits = typename ExponentialOf<A>::Bits;
  return (Bits)v & (Bits)(-Vector<A>{});
}

template <class A>
inline Vector<A> magnitude(Vector<A> v) {
  return (Vector<A>)((typename ExponentialOf<A>::Bits)v ^ sign_of<A>(v));
}

// A piecewise-linear activation: 1 is its slope on the upper branch, where !(v <= 0), so that NaN passes through.
struct None {
  explicit None(double) {}

  template <class A>
  Vector<A> value(Vector<A> v) const {
    return v;
  }
  template <class A>
  Vector<A> slope(Vector<A>) const {
    return splat<A>(1);
  }
  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    return {v, splat<A>(1)};
  }
};

struct Relu {
  explicit Relu(double) {}

  template <class A>
  Vector<A> value(Vector<A> v) const {
    return v <= 0 ? Vector<A>{} : v;
  }
  template <class A>
  Vector<A> slope(Vector<A> v) const {
    return v <= 0 ? Vector<A>{} : splat<A>(1);
  }
  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    return {value<A>(v), slope<A>(v)};
  }
};

struct LeakyRelu {
  double lower_slope;
  explicit LeakyRelu(double lower_slope) : lower_slope(lower_slope) {}

  template <class A>
  Vector<A> value(Vector<A> v) const {
    return v <= 0 ? v * static_cast<A>(lower_slope) : v;
  }
  template <class A>
  Vector<A> slope(Vector<A> v) const {
    return v <= 0 ? splat<A>(static_cast<A>(lower_slope)) : splat<A>(1);
  }
  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    return {value<A>(v), slope<A>(v)};
  }
};

// A smooth activation says how to compute both; where one is asked for, the compiler drops what only the other needs.
template <class Self>
struct Smooth {
  explicit Smooth(double) {}

  template <class A>
  Vector<A> value(Vector<A> v) const {
    return static_cast<const Self*>(this)->template both<A>(v).value;
  }
  template <class A>
  Vector<A> slope(Vector<A> v) const {
    return static_cast<const Self*>(this)->template both<A>(v).slope;
  }
};

struct Sigmoid : Smooth<Sigmoid> {
  using Smooth::Smooth;

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    const Vector<A> s = 1 / (1 + exponential<A>(-v));
    return {s, s * (1 - s)};
  }
};

struct Silu : Smooth<Silu> {
  using Smooth::Smooth;

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    const Vector<A> s = 1 / (1 + exponential<A>(-v));
    return {v * s, s * (1 + v * (1 - s))};
  }
};

// tanh |v| = 1 - 2t / (1 + t) with t = exp(-2|v|); below 1, where that cancels, v + v^3 P(v^2). PyTorch's tanh is
// nearly exact, and this has to be good to one unit in the last place as well.
struct Tanh : Smooth<Tanh> {
  using Smooth::Smooth;

  // P(z) for 0 <= z <= 1: 5e-9 of tanh in float, 1e-17 in double.
  static Vector<float> near_zero(Vector<float> z) {
    static constexpr float coefficients[] = {-3.333329558e-01f, 1.333234608e-01f, -5.387984961e-02f, 2.148670331e-02f,
                                             -7.946079597e-03f, 2.301293891e-03f, -3.584205115e-04f};
    return polynomial<float>(z, coefficients);
  }
  static Vector<double> near_zero(Vector<double> z) {
    static constexpr double coefficients[] = {
        -3.33333333333333315e-01, 1.33333333333330889e-01, -5.39682539680463730e-02, 2.18694885291290907e-02,
        -8.86323540457828289e-03, 3.59212667936634113e-03, -1.45582469209649414e-03, 5.89979294630005205e-04,
        -2.38957052287382251e-04, 9.64627774331318133e-05, -3.83896078931473335e-05, 1.46061316767153777e-05,
        -4.98776031752034659e-06, 1.37918144990833421e-06, -2.63307722329593373e-07, 2.51550236593821052e-08};
    return polynomial<double>(z, coefficients);
  }

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    using Bits = typename ExponentialOf<A>::Bits;
    const Vector<A> size = magnitude<A>(v), t = exponential<A>(-2 * size);
    const Vector<A> far = 1 - 2 * t / (1 + t);
    const Vector<A> square = v * v, near = size + size * (square * near_zero(square));
    const Vector<A> y = (Vector<A>)((Bits)(size < 1 ? near : far) ^ sign_of<A>(v));
    return {y, 1 - y * y};
  }
};

// v (1 + tanh u) / 2 = v / (1 + exp(-2u)), where 2u = v (a + b v^2).
struct GeluTanh : Smooth<GeluTanh> {
  using Smooth::Smooth;

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    constexpr double a = 1.59576912160573071176, b = 0.0713548162726002527;  // 2 sqrt(2 / pi), 0.044715 of that
    // From v^2 = 1000 on the logistic function is 0 or 1, and its slope 0: not so much that 0 times it is NaN.
    const Vector<A> square = v * v, x = square > A(1000) ? splat<A>(1000) : square;
    const Vector<A> e = exponential<A>(-v * (A(a) + A(b) * x)), s = 1 / (1 + e);
    // 1 - s = e s. Where e is infinite s is 0, and any number will do for e.
    constexpr A largest = std::numeric_limits<A>::max();
    const Vector<A> other = (e > largest ? splat<A>(largest) : e) * s;
    return {v * s, s * (1 + (A(a) + A(3 * b) * x) * other * v)};
  }
};

// v times the normal distribution's Phi(v). Its smaller tail is Phi(-|v|) = exp(-v^2 / 2) R(|v|), which is exact far
// out, and Phi(v) = 1/2 + v P(v^2) is more so for |v| < 1.
struct Gelu : Smooth<Gelu> {
  using Smooth::Smooth;

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    const Vector<A> square = v * v, e = exponential<A>(square * A(-0.5));
    Vector<A> phi;
    if constexpr (sizeof(A) == 4) {
      // R as a polynomial in 1 / (1 + 0.3 |v|): to 6e-8 of R for |v| <= 14, past which exp is 0. P to 1e-8 of Phi.
      static constexpr float tail_coefficients[] = {7.168478972e-06f, 0.1194876977f,  0.1219202636f,
                                                    0.09468390016f,   0.1425344584f,  -0.07650465138f,
                                                    0.2286582202f,    -0.1691650756f, 0.03837804727f};
      static constexpr float centre_coefficients[] = {3.989422023e-01f, -6.648870558e-02f, 9.963877499e-03f,
                                                      -1.164726680e-03f, 9.209368727e-05f};
      const Vector<A> tail = e * polynomial<A>(1 / (1 + A(0.3) * magnitude<A>(v)), tail_coefficients);
      const Vector<A> centre = A(0.5) + v * polynomial<A>(square, centre_coefficients);
      phi = square < 1 ? centre : v > 0 ? 1 - tail : tail;
    } else {
      for (int i = 0; i < kLanes<A>; ++i) phi[i] = 0.5 * std::erfc(v[i] * -0.70710678118654752440);
    }
    return {v * phi, phi + v * e * A(0.39894228040143267794)};
  }
};

// tanh(log(1 + e)) = n / (n + 2), where e = exp(v) and n = e (e + 2).
struct Mish : Smooth<Mish> {
  using Smooth::Smooth;

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    const auto linear = v > A(20);  // n / (n + 2) is 1 from here on, and its slope is 0
    const Vector<A> e = exponential<A>(linear ? splat<A>(20) : v), n = e * (e + 2);
    // Two divisions: n * inverse is rounded once more than n / (n + 2), and would not be 1 where it has to be.
    const Vector<A> s = n / (n + 2), inverse = 1 / (n + 2), bend = 4 * e * (e + 1) * inverse * inverse;
    return {v * s, s + v * (linear ? Vector<A>{} : bend)};
  }
};

// v where it is 0 or above, exp(v) - 1 elsewhere.
struct Elu : Smooth<Elu> {
  using Smooth::Smooth;

  template <class A>
  ValueAndSlope<A> both(Vector<A> v) const {
    const auto upper = v >= 0;
    const ExponentialOfNegative<A> e(upper ? Vector<A>{} : v);
    return {upper ? v : e.minus_one(), upper ? splat<A>(1) : e.value()};
  }
};

// Calls body with the activation, whose type the compiler then knows.
template <class Body>
void with_activation(Activation activation, double lower_slope, const Body& body) {
  switch (activation) {
    case Activation::none:
      return body(None(lower_slope));
    case Activation::relu:
      return body(Relu(lower_slope));
    case Activation::leaky_relu:
      return body(LeakyRelu(lower_slope));
    case Activation::silu:
      return body(Silu(lower_slope));
    case Activation::gelu:
      return body(Gelu(lower_slope));
    case Activation::gelu_tanh:
      return body(GeluTanh(lower_slope));
    case Activation::sigmoid:
      return body(Sigmoid(lower_slope));
    case Activation::tanh:
      return body(Tanh(lower_slope));
    case Activation::mish:
      return body(Mish(lower_slope));
    case Activation::elu:
      return body(Elu(lower_slope));
  }
}

}  // namespace film::FILM_ISA
