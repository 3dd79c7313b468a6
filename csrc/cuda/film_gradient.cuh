// The gradient of the convolution's result, element by element (pass_kernels.h has the formulas).
#pragma once

#include <cuda_runtime.h>

namespace film::cuda {

struct Sums {
  float product = 0, u = 0, g = 0;
};

// dz of one element, and what it adds to the sums of its channel.
template <class Act>
__device__ __forceinline__ float gradient_of(const Act& act, bool post, float g, float raw, float bias, float scale,
                                             float shift, Sums& sums) {
  const float z = raw + bias, u = act.gradient(g, post ? z : scale * z + shift);
  sums.product += post ? g * act.value(z) : u * z;
  sums.u += u;
  sums.g += g;
  return scale * u;
}

}  // namespace film::cuda
