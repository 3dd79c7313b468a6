// Backward where nothing was kept: the convolution of `matrix` (kernels.h) once more, and at its end, instead of y, its
// gradient and partial sums, as the backward pass has them (pass_kernels.h). The problem's activation may be any.
#pragma once

#include "pass_kernels.h"

namespace film::cuda {

struct RecomputeArgs {
  const void *input, *weight, *grad;  // channels_last
  void* dz;                           // likewise, null where not wanted
  Matrix bias, gamma, beta;
  PassSums sums;
};

// By the number of the current device's multiprocessors.
cudaError_t recompute_cut(const Problem&, PassCut&);
cudaError_t recompute(const Problem&, const RecomputeArgs&, cudaStream_t);

}  // namespace film::cuda
