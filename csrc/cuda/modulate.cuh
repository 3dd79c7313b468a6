// Bias, activation and FiLM of one element, and what backward makes of the bit that was kept.
#pragma once

#include "activate.cuh"
#include "elements.cuh"

namespace film::cuda {

// y = gamma * act(z) + beta (post) or act(gamma * z + beta) (pre), z = sum + b.
template <class T>
struct Modulation {
  Factor<T> bias, gamma, beta;
  float gamma_offset, lower_slope;
  int activation;
  bool post;

  __device__ __forceinline__ float scale(int64_t sample, int channel) const {
    return gamma.at(sample, channel) + gamma_offset;
  }

  // The value for one element; `upper` says which branch a piecewise-linear activation was on: !(v <= 0), so that NaN
  // passes through.
  template <class Act>
  __device__ __forceinline__ float operator()(const Act& act, float z, float scale, float shift, bool& upper) const {
    const float v = post ? z : scale * z + shift;
    upper = !(v <= 0.f);
    return post ? scale * act.value(v) + shift : act.value(v);
  }
};

template <class T>
Modulation<T> modulation_of(const Problem& p, const Matrix& bias, const Matrix& gamma, const Matrix& beta) {
  return {factor_of<T>(bias, 0.f),           factor_of<T>(gamma, 1.f),
          factor_of<T>(beta, 0.f),           static_cast<float>(p.gamma_offset),
          static_cast<float>(p.lower_slope), static_cast<int>(p.activation),
          p.position == Position::post};
}

// u = g * slope(bit), exactly 0 on relu's lower branch.
struct Branch {
  float lower_slope;
  Activation activation;

  __device__ __forceinline__ float operator()(float g, bool upper) const {
    if (activation == Activation::none || upper) return g;
    return activation == Activation::relu ? 0.f : lower_slope * g;
  }
};

inline Branch branch_of(const Problem& p) { return {static_cast<float>(p.lower_slope), p.activation}; }

}  // namespace film::cuda
