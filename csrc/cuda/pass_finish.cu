// The second, small step of the backward pass: partial sums are added in order, in float64. Also says how they are cut.
#include <launch.cuh>
#include <ptx.cuh>

#include "elements.cuh"
#include "pass_kernels.h"
#include "sizes.cuh"

namespace film::cuda {
namespace {

constexpr int kChannels = 8, kSamples = 32, kThreads = kChannels * kSamples;  // of a block

template <class T>
struct Params {
  PassSums sums;
  int64_t n, splits;
  int k, film_blocks;
  Factor<T> gamma;
  float gamma_offset;
  bool post;
  T *bias, *gamma_gradient, *beta;
};

template <class T>
__device__ __forceinline__ double total_of(const Params<T>& p, const float* partial, int64_t n, int k) {
  double sum = 0;
  for (int64_t i = 0; i < p.splits; ++i) sum += partial[(n * p.splits + i) * p.k + k];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) pass_finish_kernel(const Params<T> p) {
  double* shared = ptx::shared_memory<double>();
  if (static_cast<int>(blockIdx.x) < p.film_blocks) {  // a thread for each sample and channel
    const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (i >= p.n * p.k) return;
    const int64_t n = i / p.k;
    const int k = static_cast<int>(i - n * p.k);
    if (p.gamma_gradient != nullptr)
      p.gamma_gradient[i] = from_float<T>(static_cast<float>(total_of(p, p.sums.product, n, k)));
    if (p.beta != nullptr)
      p.beta[i] = from_float<T>(static_cast<float>(total_of(p, p.post ? p.sums.g : p.sums.u, n, k)));
    return;
  }
  // A block for some channels of all samples: the threads of a channel take samples in turn.
  const int block = static_cast<int>(blockIdx.x) - p.film_blocks;
  const int k = block * kChannels + threadIdx.x % kChannels, first = threadIdx.x / kChannels;
  double of_bias = 0;
  for (int64_t n = first; k < p.k && n < p.n; n += kSamples)
    of_bias += static_cast<double>(p.gamma.at(n, k) + p.gamma_offset) * total_of(p, p.sums.u, n, k);
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
    const bool film = to.gamma != nullptr || to.beta != nullptr;
    const int64_t film_blocks = film ? ceil_div(p.batch * p.channels, kThreads) : 0;
    const int64_t bias_blocks = to.bias != nullptr ? ceil_div(p.channels, kChannels) : 0;
    if (film_blocks + bias_blocks == 0) return cudaSuccess;
    const Params<T> params{sums,
                           p.batch,
                           cut.splits,
                           static_cast<int>(p.channels),
                           static_cast<int>(film_blocks),
                           factor_of<T>(p.gamma, 1.f),
                           static_cast<float>(p.gamma_offset),
                           p.post,
                           static_cast<T*>(to.bias),
                           static_cast<T*>(to.gamma),
                           static_cast<T*>(to.beta)};
    return launch(pass_finish_kernel<T>, dim3(static_cast<unsigned>(film_blocks + bias_blocks)), dim3(kThreads),
                  kThreads * sizeof(double), stream, params);
  });
}

}  // namespace film::cuda
