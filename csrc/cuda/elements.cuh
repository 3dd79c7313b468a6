// Elements: float, __half, __nv_bfloat16, one at a time or 16 bytes of them, always worked on in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "../problem.h"

namespace film::cuda {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

template <class T>
constexpr int kPacket = 16 / sizeof(T);  // elements of a packet: 16 bytes, the most that a thread moves at once

// The packet at a multiple of 16 bytes, and back.
template <class T>
__device__ __forceinline__ void unpack(const uint4& packet, float (&values)[kPacket<T>]) {
  T elements[kPacket<T>];
  memcpy(elements, &packet, sizeof(packet));
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) values[i] = to_float(elements[i]);
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&values)[kPacket<T>]) {
  T elements[kPacket<T>];
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) elements[i] = from_float<T>(values[i]);
  uint4 packet;
  memcpy(&packet, elements, sizeof(packet));
  return packet;
}

// gamma, beta (N, K) or bias (K), or what stands for it where there is none.
template <class T>
struct Factor {
  const T* data;
  int64_t n, k;  // strides
  float otherwise;

  __device__ __forceinline__ float at(int64_t sample, int channel) const {
    return data == nullptr ? otherwise : to_float(data[sample * n + channel * k]);
  }
};

template <class T>
Factor<T> factor_of(const Matrix& m, float otherwise) {
  return {static_cast<const T*>(m.data), m.n, m.k, otherwise};
}

// Calls body(T()) with the element type of `dtype`; float64 has no kernels here.
template <class F>
cudaError_t with_type(DType dtype, const F& body) {
  switch (dtype) {
    case DType::f32:
      return body(float());
    case DType::bf16:
      return body(__nv_bfloat16());
    case DType::f16:
      return body(__half());
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace film::cuda
