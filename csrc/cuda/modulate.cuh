// Bias, activation and FiLM of one element, and what backward makes of the bit that was kept.
#pragma once

#include <ptx.cuh>

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

  // Whether u is g or 0: `where_set` is enough.
  bool keeps_or_drops() const { return activation != Activation::leaky_relu; }
};

inline Branch branch_of(const Problem& p) { return {static_cast<float>(p.lower_slope), p.activation}; }

// The elements of a packet whose bits, from the first on, are set, and 0 in place of the others, whatever they are.
template <class T>
__device__ __forceinline__ uint4 where_set(const uint4& packet, unsigned bits) {
  // Each product has a bit at the top of each of its bytes, the last bit at the top of the first.
  const unsigned low = bits * 0x80402010u;
  if constexpr (sizeof(T) == 4) {
    return make_uint4(packet.x & ptx::permute(low, 0xbbbb), packet.y & ptx::permute(low, 0xaaaa),
                      packet.z & ptx::permute(low, 0x9999), packet.w & ptx::permute(low, 0x8888));
  } else {
    const unsigned high = bits * 0x08040201u;
    return make_uint4(packet.x & ptx::permute(low, 0xaabb), packet.y & ptx::permute(low, 0x8899),
                      packet.z & ptx::permute(high, 0xaabb), packet.w & ptx::permute(high, 0x8899));
  }
}

// gamma * u + offset * u of two elements, rounded once; `offset` is all ones where it is 1, and 0 where it is 0.
__device__ __forceinline__ uint32_t scale_two(__half, uint32_t gamma, uint32_t u, uint32_t offset) {
  return ptx::fma_f16x2(gamma, u, u & offset);
}
__device__ __forceinline__ uint32_t scale_two(__nv_bfloat16, uint32_t gamma, uint32_t u, uint32_t offset) {
  return ptx::fma_bf16x2(gamma, u, u & offset);
}

// Whether `scaled` serves an offset: float32 takes any.
template <class T>
bool scales_by(float offset) {
  return sizeof(T) == 4 || offset == 0.f || offset == 1.f;
}

// (gamma + offset) * u of a packet, rounded once.
template <class T>
__device__ __forceinline__ uint4 scaled(const uint4& u, const uint4& gamma, float offset) {
  if constexpr (sizeof(T) == 4) {
    float values[kPacket<T>], scales[kPacket<T>];
    unpack<T>(u, values), unpack<T>(gamma, scales);
#pragma unroll
    for (int v = 0; v < kPacket<T>; ++v) values[v] *= scales[v] + offset;
    return pack<T>(values);
  } else {
    const uint32_t added = offset == 0.f ? 0u : ~0u;
    return make_uint4(scale_two(T(), gamma.x, u.x, added), scale_two(T(), gamma.y, u.y, added),
                      scale_two(T(), gamma.z, u.z, added), scale_two(T(), gamma.w, u.w, added));
  }
}

}  // namespace film::cuda
