// The second, small step of the backward pass: partial sums are added in order, in float64. Also says how they are cut.
#include <launch.cuh>
#include <ptx.cuh>

#include "elements.cuh"
#include "pass_kernels.h"
#include "sizes.cuh"

namespace film::cuda {
namespace {

constexpr int kChannels = 32, kSamples = 8, kThreads = kChannels * kSamples;  // of a block

template <class T>
struct Params {
  PassSums sums;
  int64_t n, splits;
  int k;
  Factor<T> gamma;
  float gamma_offset;
  bool post;
  T *bias, *gamma_gradient, *beta;
};

// A block has some channels of all samples: eight threads of a channel take samples in turn.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) pass_finish_kernel(const Params<T> p) {
  double* shared = ptx::shared_memory<double>();
  const int k = static_cast<int>(blockIdx.x) * kChannels + threadIdx.x % kChannels;
  const int first = threadIdx.x / kChannels;
  double of_bias = 0;
  for (int64_t n = first; k < p.k && n < p.n; n += kSamples) {
    const auto total = [&](const float* partial) {
      double sum = 0;
      for (int64_t i = 0; partial != nullptr && i < p.splits; ++i) sum += partial[(n * p.splits + i) * p.k + k];
      return sum;
    };
    const double u = total(p.sums.u);
    if (p.gamma_gradient != nullptr)
      p.gamma_gradient[n * p.k + k] = from_float<T>(static_cast<float>(total(p.sums.product)));
    if (p.beta != nullptr) p.beta[n * p.k + k] = from_float<T>(static_cast<float>(p.post ? total(p.sums.g) : u));
    of_bias += static_cast<double>(p.gamma.at(n, k) + p.gamma_offset) * u;
  }
  if (p.bias == nullptr) return;
  shared[threadIdx.x] = of_bias;
  __syncthreads();
  if (first > 0 || k >= p.k) return;
  for (int i = 1; i < kSamples; ++i) of_bias += shared[i * kChannels + threadIdx.x];
  p.bias[k] = from_float<T>(static_cast<float>(of_bias));
}

}  // namespace

PassCut pass_cut(const Pass& p) {
  constexpr int64_t kPlanePiece = 2048;                     // elements of a warp
  constexpr int64_t kBlockElements = 16384, kLeast = 4096;  // of a block in rows
  constexpr int64_t kBlocks = 512;                          // so that a large GPU has work everywhere
  if (!p.rows) return {ceil_div(p.positions, kPlanePiece), kPlanePiece};
  const int64_t channels = p.channels < 128 ? p.channels : 128;
  int64_t elements = kBlockElements;
  while (elements > kLeast && ceil_div(p.batch * p.positions * p.channels, elements) < kBlocks) elements /= 2;
  const int64_t length = ceil_div(elements, channels);
  return {ceil_div(p.positions, length), length};
}

cudaError_t pass_finish(const Pass& p, const PassCut& cut, const PassSums& sums, const PassGradients& to,
                        cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Params<T> params{sums,
                           p.batch,
                           cut.splits,
                           static_cast<int>(p.channels),
                           factor_of<T>(p.gamma, 1.f),
                           static_cast<float>(p.gamma_offset),
                           p.post,
                           static_cast<T*>(to.bias),
                           static_cast<T*>(to.gamma),
                           static_cast<T*>(to.beta)};
    return launch(pass_finish_kernel<T>, dim3(static_cast<unsigned>(ceil_div(p.channels, kChannels))), dim3(kThreads),
                  kThreads * sizeof(double), stream, params);
  });
}

}  // namespace film::cuda
