// The second, small step of norm_film's backward: what chunks summed (norm_kernels.h) is added in order, in float64.
//   dgamma[n, c] = weight * B, or the sum of d * z, or of grad * act(v)        dbeta[n, c] = A, or the sum of grad
//   dw[c] = sum over n of scale * B        db[c] = sum over n of scale * A     (A of d, B of d * xhat)
//   terms of a group: means of the gradient of xhat, scale * weight * d, and of that times xhat
#include "norm_team.cuh"

namespace film::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
struct Params {
  NormParams<T> norm;
  NormSums sums;
  int chunks, lines, film_blocks, channel_blocks;
  double group_size;
  T *grad_gamma, *grad_beta;
  void *grad_weight, *grad_bias;
  float* terms;
};

template <class T>
__device__ __forceinline__ double sum_of(const Params<T>& p, int kind, int64_t number) {
  const float* from = p.sums.data + (static_cast<int64_t>(kind) * p.norm.batch * p.norm.channels + number) * p.chunks;
  double total = 0;
  for (int64_t k = 0; k < p.chunks; ++k) total += from[k];
  return total;
}

// Over the threads of a block, for the first of them: the others are not to look where it still writes.
__device__ __forceinline__ double sum_of_block(double v) {
  double* shared = ptx::shared_memory<double>();
  __syncthreads();
  shared[threadIdx.x] = v;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  return threadIdx.x == 0 ? shared[0] : 0;
}

template <class T>
__device__ __forceinline__ float scale_of(const NormParams<T>& p, int64_t n, int64_t c) {
  return p.gamma.at(n, c) + p.gamma_offset;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) finish_kernel(const Params<T> p) {
  const NormParams<T>& norm = p.norm;
  const int64_t all = static_cast<int64_t>(norm.batch) * norm.channels * p.chunks;
  int block = static_cast<int>(blockIdx.x);
  if (block < p.film_blocks) {  // a thread for each (n, c)
    const int number = block * kThreads + static_cast<int>(threadIdx.x);
    if (number >= norm.batch * norm.channels) return;
    const int c = number % norm.channels;
    if (p.grad_gamma != nullptr) {
      const double total = p.sums.kinds == 4   ? sum_of(p, 3, number)
                           : p.sums.kinds == 3 ? sum_of(p, 2, number)
                                               : norm.weight.at(0, c) * sum_of(p, 1, number);
      p.grad_gamma[number] = from_float<T>(static_cast<float>(total));
    }
    if (p.grad_beta != nullptr)
      p.grad_beta[number] = from_float<T>(static_cast<float>(sum_of(p, p.sums.kinds == 4 ? 2 : 0, number)));
    return;
  }
  block -= p.film_blocks;
  double d = 0, along = 0;
  if (block < p.channel_blocks) {  // a block for each channel
    for (int i = threadIdx.x; i < norm.batch * p.chunks; i += kThreads) {
      const int n = i / p.chunks;
      const int64_t at = (static_cast<int64_t>(n) * norm.channels + block) * p.chunks + i % p.chunks;
      const double scale = scale_of(norm, n, block);
      d += scale * p.sums.data[at];
      along += scale * p.sums.data[all + at];
    }
    d = sum_of_block(d), along = sum_of_block(along);
    if (threadIdx.x != 0) return;
    const auto write = [&](void* to, double v) {
      if (to == nullptr) return;
      if (norm.weight.wide)
        static_cast<float*>(to)[block] = static_cast<float>(v);
      else
        static_cast<T*>(to)[block] = from_float<T>(static_cast<float>(v));
    };
    write(p.grad_weight, along), write(p.grad_bias, d);
    return;
  }
  block -= p.channel_blocks;  // a block for each group
  const bool batch = norm.norm == Norm::batch;
  for (int i = threadIdx.x; i < p.lines * p.chunks; i += kThreads) {
    const int line = i / p.chunks, n = batch ? line : block / norm.groups;
    const int c = batch ? block : block % norm.groups * norm.each + line;
    const int64_t at = (static_cast<int64_t>(n) * norm.channels + c) * p.chunks + i % p.chunks;
    const double factor = static_cast<double>(scale_of(norm, n, c)) * norm.weight.at(0, c);
    d += factor * p.sums.data[at];
    along += factor * p.sums.data[all + at];
  }
  d = sum_of_block(d), along = sum_of_block(along);
  if (threadIdx.x != 0) return;
  p.terms[block] = static_cast<float>(d / p.group_size);
  p.terms[norm.statistics + block] = static_cast<float>(along / p.group_size);
}

}  // namespace

cudaError_t norm_finish(const NormProblem& p, const NormBackwardArgs& args, const NormCut& cut, const NormSums& sums,
                        float* terms, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    Params<T> params{};
    params.norm = norm_params<T>(p, args.by, args.input);
    params.sums = sums, params.chunks = static_cast<int>(cut.chunks), params.lines = static_cast<int>(norm_lines(p));
    params.group_size = static_cast<double>(p.group_size());
    params.grad_gamma = static_cast<T*>(args.grad_gamma), params.grad_beta = static_cast<T*>(args.grad_beta);
    params.grad_weight = args.grad_weight, params.grad_bias = args.grad_bias, params.terms = terms;
    if (args.grad_gamma != nullptr || args.grad_beta != nullptr)
      params.film_blocks = static_cast<int>(norm_ceil_div(p.batch * p.channels, kThreads));
    if (args.grad_weight != nullptr || args.grad_bias != nullptr) params.channel_blocks = params.norm.channels;
    const int64_t blocks =
        int64_t{params.film_blocks} + params.channel_blocks + (terms != nullptr ? p.statistics() : 0);
    if (blocks == 0) return cudaSuccess;
    return launch(finish_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), kThreads * sizeof(double),
                  stream, params);
  });
}

}  // namespace film::cuda
