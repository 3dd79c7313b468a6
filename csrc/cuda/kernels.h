// What the library asks of the CUDA kernels. There are two families of the same three: `matrix`, products on tensor
// cores for channels_last tensors whose channels come in whole 16-byte packets, and `direct`, ordinary float32 products
// for few input channels and any strides. Each call starts kernels on `stream` and waits for nothing.
#pragma once

#include <cuda_runtime.h>

#include "../problem.h"

namespace film::cuda {

// How the sums of the weight gradient are cut, by shapes alone, so that every run adds in the same order. The positions
// of a sample are cut into `sample_units` units, and `split_units` units, one after another, are a split.
struct Cut {
  int64_t sample_units;  // units of a sample
  int64_t splits;        // ceil(N * sample_units / split_units)
  int64_t split_units;   // units of a split
  int64_t dots;          // partial sums of <W, U> for each sample and channel
};

// Partial sums in float32, null where not wanted. r = (kh * KW + kw) * C + c is a product.
struct Partials {
  float* weight;  // (splits, K, products): sum over the split's units of (gamma + gamma_offset) * U
  float* dot;     // (N, dots, K): <W, U> of some products and positions
  float* sum_u;   // (N, sample_units, K): sum_p u
  float* sum_g;   // (N, sample_units, K): sum_p g
};

namespace matrix {
cudaError_t forward(const Problem&, const ForwardArgs&, cudaStream_t);
cudaError_t grad_input(const Problem&, const GradInputArgs&, cudaStream_t);
Cut cut_of(const Problem&);
cudaError_t grad_weight(const Problem&, const GradWeightArgs&, const Cut&, const Partials&, cudaStream_t);
}  // namespace matrix

namespace direct {
cudaError_t forward(const Problem&, const ForwardArgs&, cudaStream_t);
cudaError_t grad_input(const Problem&, const GradInputArgs&, cudaStream_t);
Cut cut_of(const Problem&);
cudaError_t grad_weight(const Problem&, const GradWeightArgs&, const Cut&, const Partials&, cudaStream_t);
}  // namespace direct

// The gradients in `args` from the partial sums of either family, added in order, in float64.
cudaError_t finish(const Problem&, const GradWeightArgs& args, const Cut&, const Partials&, cudaStream_t);

}  // namespace film::cuda
