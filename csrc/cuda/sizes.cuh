// A Problem's numbers as kernels take them: 32 bits for what counts along one axis, 64 for offsets into tensors.
#pragma once

#include <cuda_runtime.h>

#include "../problem.h"

namespace film::cuda {

struct Sizes {
  int64_t n;
  int c, h, w, k, oh, ow, kh, kw, sh, sw, dh, dw, ph, pw;
};

inline Sizes sizes_of(const Problem& p) {
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  return {p.batch,
          narrow(p.in_channels),
          narrow(p.h.in),
          narrow(p.w.in),
          narrow(p.out_channels),
          narrow(p.h.out),
          narrow(p.w.out),
          narrow(p.h.kernel),
          narrow(p.w.kernel),
          narrow(p.h.stride),
          narrow(p.w.stride),
          narrow(p.h.dilation),
          narrow(p.w.dilation),
          narrow(p.h.pad),
          narrow(p.w.pad)};
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace film::cuda
