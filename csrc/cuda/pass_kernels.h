// The passes around a library's convolution. With raw = conv(x, W), z = raw + b, scale = gamma + gamma_offset:
//   forward     y = scale * act(z) + beta (post) or act(scale * z + beta) (pre)
//   backward    dz = scale * u,  u = g * act'(v),  v = z (post) or scale * z + beta (pre)
//               dgamma = sum_p g * act(z) (post) or sum_p u * z (pre)
//               dbeta = sum_p g (post) or sum_p u (pre),  db = sum_n scale * sum_p u
// Tensors are dense: planes (N, K, positions), or rows (N, positions, K).
#pragma once

#include <cuda_runtime.h>

#include "../problem.h"

namespace film::cuda {

struct Pass {
  int64_t batch, channels, positions;
  bool rows;
  DType dtype;
  Activation activation;
  bool post;
  double lower_slope, gamma_offset;
  Matrix bias, gamma, beta;
};

// How a sample's positions are shared out, by shapes alone, so that every run adds in the same order.
struct PassCut {
  int64_t splits;  // of a sample
  int64_t length;  // positions of a split
};

// Partial sums (N, splits, K) in float32, null where not wanted.
struct PassSums {
  float *product, *u, *g;  // of dgamma, of u and of the gradient
};

// Where the factors go too, contiguous, null where not wanted.
struct PassCopies {
  void *bias, *beta;  // (K) and (N, K)
};

struct PassGradients {
  void *bias, *gamma, *beta;  // contiguous, null where not wanted
};

PassCut pass_cut(const Pass&);
cudaError_t pass_forward(const Pass&, const PassCut&, const void* raw, void* out, const PassCopies&, cudaStream_t);
cudaError_t pass_backward(const Pass&, const PassCut&, const void* grad, const void* raw, void* dz, const PassSums&,
                          cudaStream_t);  // dz is null where it is not wanted
cudaError_t pass_finish(const Pass&, const PassCut&, const PassSums&, const PassGradients&, cudaStream_t);

}  // namespace film::cuda
