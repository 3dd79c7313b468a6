// The second, small step of every sum that is split over blocks: partial sums (kernels.h) are added in order, in
// float64.
//   dW[k, r] = sum over splits        dgamma[n, k] = sum over dots + b[k] * sum_p u
//   db[k] = sum over n of (gamma[n, k] + gamma_offset) * sum_p u        dbeta[n, k] = sum_p g (post) or sum_p u (pre)
#include <launch.cuh>
#include <ptx.cuh>

#include "elements.cuh"
#include "kernels.h"
#include "sizes.cuh"

namespace film::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Params {
  Partials partials;
  Cut cut;
  int64_t n;
  int k, c, kw, products;
  Factor<T> bias, gamma;
  float gamma_offset;
  bool post, relu;
  View w;  // of dW
  T *grad_bias, *grad_gamma, *grad_beta;
};

template <class T>
__device__ __forceinline__ T rounded(double v) {
  return from_float<T>(static_cast<float>(v));
}

// Sum over `count` partial sums of one sample and channel.
__device__ __forceinline__ double add(const float* partial, int64_t count, int64_t pitch) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += partial[i * pitch];
  return total;
}

// A thread for each (k, r); neighbours in r read neighbours.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) finish_weight_kernel(const Params<T> p) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t elements = static_cast<int64_t>(p.k) * p.products;
  if (i >= elements) return;
  const int64_t k = i / p.products;
  const int r = static_cast<int>(i - k * p.products), tap = r / p.c, c = r - tap * p.c;
  const int64_t at = k * p.w.n + c * p.w.c + tap / p.kw * p.w.h + tap % p.kw * p.w.w;
  static_cast<T*>(p.w.data)[at] = rounded<T>(add(p.partials.weight + i, p.cut.splits, elements));
}

// A thread for each (n, k).
template <class T>
__global__ void __launch_bounds__(kThreads, 1) finish_film_kernel(const Params<T> p) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= p.n * p.k) return;
  const int64_t n = i / p.k;
  const int k = static_cast<int>(i - n * p.k);
  const int64_t unit = n * p.cut.sample_units * p.k + k;
  const double sum_u = p.partials.sum_u == nullptr ? 0 : add(p.partials.sum_u + unit, p.cut.sample_units, p.k);
  const double sum_g = p.partials.sum_g == nullptr ? 0 : add(p.partials.sum_g + unit, p.cut.sample_units, p.k);
  if (p.grad_gamma != nullptr) {
    double total = add(p.partials.dot + n * p.cut.dots * p.k + k, p.cut.dots, p.k);
    if (p.bias.data != nullptr) total += static_cast<double>(p.bias.at(0, k)) * sum_u;
    // Plain PyTorch sums g * relu(z), which is NaN where g is not finite though relu is off there.
    if (p.post && p.relu) total += 0. * sum_g;
    p.grad_gamma[i] = rounded<T>(total);
  }
  if (p.grad_beta != nullptr) p.grad_beta[i] = rounded<T>(p.post ? sum_g : sum_u);
}

// A block for each k: threads take units in turn, and are added up by halves.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) finish_bias_kernel(const Params<T> p) {
  double* shared = ptx::shared_memory<double>();
  const int k = static_cast<int>(blockIdx.x);
  double total = 0;
  for (int64_t unit = threadIdx.x; unit < p.n * p.cut.sample_units; unit += kThreads) {
    const float scale = p.gamma.at(unit / p.cut.sample_units, k) + p.gamma_offset;
    total += static_cast<double>(scale) * p.partials.sum_u[unit * p.k + k];
  }
  shared[threadIdx.x] = total;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) p.grad_bias[k] = rounded<T>(shared[0]);
}

}  // namespace

cudaError_t finish(const Problem& p, const GradWeightArgs& args, const Cut& cut, const Partials& partials,
                   cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Sizes s = sizes_of(p);
    Params<T> params;
    params.partials = partials;
    params.cut = cut;
    params.n = s.n, params.k = s.k, params.c = s.c, params.kw = s.kw;
    params.products = s.kh * s.kw * s.c;
    params.bias = factor_of<T>(args.bias, 0.f);
    params.gamma = factor_of<T>(args.gamma, 1.f);
    params.gamma_offset = static_cast<float>(p.gamma_offset);
    params.post = p.position == Position::post;
    params.relu = p.activation == Activation::relu;
    params.w = args.grad_weight;
    params.grad_bias = static_cast<T*>(args.grad_bias);
    params.grad_gamma = static_cast<T*>(args.grad_gamma);
    params.grad_beta = static_cast<T*>(args.grad_beta);
    const auto blocks = [](int64_t threads) { return dim3(static_cast<unsigned>(ceil_div(threads, kThreads))); };
    const dim3 block(kThreads);
    cudaError_t error = cudaSuccess;
    if (args.grad_weight.data != nullptr)
      error = launch(finish_weight_kernel<T>, blocks(p.out_channels * params.products), block, 0, stream, params);
    if (error == cudaSuccess && (args.grad_gamma != nullptr || args.grad_beta != nullptr))
      error = launch(finish_film_kernel<T>, blocks(p.batch * p.out_channels), block, 0, stream, params);
    if (error == cudaSuccess && args.grad_bias != nullptr)
      error = launch(finish_bias_kernel<T>, dim3(static_cast<unsigned>(s.k)), block, kThreads * sizeof(double), stream,
                     params);
    return error;
  });
}

}  // namespace film::cuda
