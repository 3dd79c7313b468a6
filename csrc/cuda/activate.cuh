// The activations and their gradients, in float32.
//
// Each is an object made from the slope of its lower branch, with value(v) = act(v) and gradient(g, v) = g * act'(v).
// Infinities and NaN give what they give in PyTorch. Smooth ones are made of the exponential function and of divisions,
// by a struct that says how exactly: as C++ has them, or to 20 bits in a few instructions, which is more than results
// of 16 bits keep. `with_activation` turns a code into one, outside of a loop over elements; activate and
// activation_gradient are for a single element.
#pragma once

#include <cuda_runtime.h>

#include <ptx.cuh>
#include <type_traits>

#include "../problem.h"

namespace film::cuda {

struct Exact {
  static __device__ __forceinline__ float exp(float v) { return expf(v); }
  static __device__ __forceinline__ float divide(float a, float b) { return a / b; }
};

struct Quick {
  static __device__ __forceinline__ float exp(float v) { return ptx::exp2(v * 1.44269504089f); }
  static __device__ __forceinline__ float divide(float a, float b) { return a * ptx::reciprocal(b); }
};

// For results of T.
template <class T>
using MathOf = std::conditional_t<sizeof(T) == 2, Quick, Exact>;

struct None {
  float slope;

  __device__ __forceinline__ float value(float v) const { return v; }
  __device__ __forceinline__ float gradient(float g, float) const { return g; }
};

// The piecewise-linear ones are on their upper branch where !(v <= 0), so that NaN passes through. What is selected by
// relu is exactly 0, whatever the gradient is.
struct Relu {
  float slope;

  __device__ __forceinline__ float value(float v) const { return v <= 0 ? 0.f : v; }
  __device__ __forceinline__ float gradient(float g, float v) const { return v <= 0 ? 0.f : g; }
};

struct LeakyRelu {
  float slope;

  __device__ __forceinline__ float value(float v) const { return v <= 0 ? slope * v : v; }
  __device__ __forceinline__ float gradient(float g, float v) const { return v <= 0 ? slope * g : g; }
};

// Any of the three, for a kernel that has no registers for a case of each.
struct PiecewiseLinear {
  float slope;
  bool is_relu;

  __device__ __forceinline__ float value(float v) const { return v <= 0 ? (is_relu ? 0.f : slope * v) : v; }
};

template <class M>
struct Sigmoid {
  float slope;

  __device__ __forceinline__ float value(float v) const { return M::divide(1, 1 + M::exp(-v)); }
  __device__ __forceinline__ float gradient(float g, float v) const {
    const float s = value(v);
    return g * (s * (1 - s));
  }
};

template <class M>
struct Silu {
  float slope;

  __device__ __forceinline__ float value(float v) const { return M::divide(v, 1 + M::exp(-v)); }
  __device__ __forceinline__ float gradient(float g, float v) const {
    const float s = M::divide(1, 1 + M::exp(-v));
    return g * (s * (1 + v * (1 - s)));
  }
};

// tanh |v| = 1 - 2t / (1 + t) with t = exp(-2|v|); below 1, where that cancels, v + v^3 P(v^2), to 5e-9 of tanh. A
// library's own may be off by two units in its last place, which is more than twice as much as PyTorch's.
template <class M>
struct Tanh {
  float slope;

  __device__ __forceinline__ float value(float v) const {
    const float size = fabsf(v), t = M::exp(-2 * size), square = v * v;
    float p = -3.584205115e-04f;
    p = p * square + 2.301293891e-03f;
    p = p * square - 7.946079597e-03f;
    p = p * square + 2.148670331e-02f;
    p = p * square - 5.387984961e-02f;
    p = p * square + 1.333234608e-01f;
    p = p * square - 3.333329558e-01f;
    return copysignf(size < 1 ? size + size * (square * p) : 1 - M::divide(2 * t, 1 + t), v);
  }
  __device__ __forceinline__ float gradient(float g, float v) const {
    const float y = value(v);
    return g * (1 - y * y);
  }
};

// v times the normal distribution's Phi(v).
template <class M>
struct Gelu {
  float slope;

  __device__ __forceinline__ float phi(float v) const { return 0.5f + 0.5f * erff(v * 0.707106781187f); }
  __device__ __forceinline__ float value(float v) const { return v * phi(v); }
  __device__ __forceinline__ float gradient(float g, float v) const {
    return g * (phi(v) + v * (M::exp(v * v * -0.5f) * 0.398942280401f));
  }
};

// v (1 + tanh u) / 2 = v / (1 + exp(-2u)), where 2u = v (a + b v^2).
template <class M>
struct GeluTanh {
  float slope;
  static constexpr float a = 1.59576912161f, b = 0.0713548162726f;  // 2 sqrt(2 / pi), 0.044715 of that

  // From v^2 = 1000 on the logistic function is 0 or 1, and its slope 0: not so much that 0 times it is NaN.
  __device__ __forceinline__ float square(float v) const { return v * v > 1000 ? 1000.f : v * v; }
  __device__ __forceinline__ float value(float v) const { return M::divide(v, 1 + M::exp(-v * (a + b * square(v)))); }
  __device__ __forceinline__ float gradient(float g, float v) const {
    constexpr float kLarge = 1e30f;  // any number will do for an infinite e: s is 0 there
    const float x = square(v), e = M::exp(-v * (a + b * x)), s = M::divide(1, 1 + e);
    const float other = (e > kLarge ? kLarge : e) * s;  // 1 - s
    return g * (s * (1 + (a + 3 * b * x) * other * v));
  }
};

// tanh(log(1 + e)) = n / (n + 2), where e = exp(v) and n = e (e + 2).
template <class M>
struct Mish {
  float slope;
  __device__ __forceinline__ bool is_linear(float v) const { return v > 20; }  // n / (n + 2) is 1, its slope 0
  __device__ __forceinline__ float value(float v) const {
    const float e = M::exp(is_linear(v) ? 0.f : v), n = e * (e + 2);
    return is_linear(v) ? v : v * M::divide(n, n + 2);
  }
  __device__ __forceinline__ float gradient(float g, float v) const {
    const bool linear = is_linear(v);
    const float e = M::exp(linear ? 0.f : v), n = e * (e + 2), inverse = M::divide(1, n + 2);
    const float bend = linear ? 0.f : 4 * e * (e + 1) * inverse * inverse;
    return g * ((linear ? 1.f : n * inverse) + v * bend);
  }
};

// v where it is 0 or above, exp(v) - 1 elsewhere: 2^n (exp(r) - 1) + (2^n - 1) with v = n ln 2 + r, which loses no
// digits of a small v. The polynomial is that of the kernels for CPUs.
template <class M>
struct Elu {
  float slope;

  __device__ __forceinline__ float value(float v) const {
    const float x = v < -80 ? -80.f : v, n = rintf(x * 1.44269504089f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440055e-4f;
    float p = 1.392617589e-03f;
    p = p * r + 8.363173343e-03f;
    p = p * r + 4.166655615e-02f;
    p = p * r + 1.666657776e-01f;
    p = p * r + 0.5f;
    const float rest = r + r * r * p, scale = exp2f(n);
    return v >= 0 ? v : scale * rest + (scale - 1);
  }
  __device__ __forceinline__ float gradient(float g, float v) const { return g * M::exp(v >= 0 ? 0.f : v); }
};

// Calls body with the activation of a code of film_kernels/activations.py, whose type the compiler then knows.
template <class M = Exact, class Body>
__device__ __forceinline__ void with_activation(int activation, float slope, const Body& body) {
  switch (static_cast<Activation>(activation)) {
    case Activation::none:
      return body(None{slope});
    case Activation::relu:
      return body(Relu{slope});
    case Activation::leaky_relu:
      return body(LeakyRelu{slope});
    case Activation::silu:
      return body(Silu<M>{slope});
    case Activation::gelu:
      return body(Gelu<M>{slope});
    case Activation::gelu_tanh:
      return body(GeluTanh<M>{slope});
    case Activation::sigmoid:
      return body(Sigmoid<M>{slope});
    case Activation::tanh:
      return body(Tanh<M>{slope});
    case Activation::mish:
      return body(Mish<M>{slope});
    case Activation::elu:
      return body(Elu<M>{slope});
  }
}

// act(v).
__device__ __forceinline__ float activate(float v, int activation, float slope) {
  float y = v;
  with_activation(activation, slope, [&](auto act) { y = act.value(v); });
  return y;
}

// g * act'(v).
__device__ __forceinline__ float activation_gradient(float g, float v, int activation, float slope) {
  float d = g;
  with_activation(activation, slope, [&](auto act) { d = act.gradient(g, v); });
  return d;
}

}  // namespace film::cuda
