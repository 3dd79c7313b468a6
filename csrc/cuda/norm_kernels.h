// What the library asks of the CUDA kernels of norm_film. Each call starts kernels on `stream` and waits for nothing.
#pragma once

#include <cuda_runtime.h>

#include "../norm_problem.h"
#include "norm_cut.h"

namespace film::cuda {

// Statistics of groups or of channels. `moments` are (3, N, C, cut.chunks) float32 numbers for what each chunk found,
// not read or written where one block has the whole of a group.
cudaError_t norm_forward(const NormProblem&, const NormForwardArgs&, const NormCut&, float* moments, cudaStream_t);

// Statistics of positions.
cudaError_t norm_forward_across(const NormProblem&, const NormForwardArgs&, const NormCut&, cudaStream_t);

// What the gradients of the factors are made of, (kinds, N, C, cut.chunks) float32 numbers: sums over a chunk of d and
// d * xhat, where d = grad * act'(v), and then of grad and grad * act(v) with FiLM after the activation, or of d * z.
struct NormSums {
  float* data;
  int kinds;
};
cudaError_t norm_sums(const NormProblem&, const NormBackwardArgs&, const NormCut&, const NormSums&, cudaStream_t);

// The gradients of the factors from these sums, and `terms`, (2, groups) float32 numbers or null: means over a group of
// the gradient of xhat, and of that times xhat.
cudaError_t norm_finish(const NormProblem&, const NormBackwardArgs&, const NormCut&, const NormSums&, float* terms,
                        cudaStream_t);

// The gradient of the input, where the statistics are of groups or of channels, or there are none; and of positions.
// `terms` are null where nothing is normalised, or where each element is its own mean.
cudaError_t norm_grad_input(const NormProblem&, const NormBackwardArgs&, const NormCut&, const float* terms,
                            cudaStream_t);
cudaError_t norm_grad_input_across(const NormProblem&, const NormBackwardArgs&, const NormCut&, cudaStream_t);

}  // namespace film::cuda
