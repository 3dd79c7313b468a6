// dx where statistics are of groups of channels or of channels, or there are none: one pass over x and the gradient.
//   dx = rstd * (d - term - xhat * other term), with d the gradient of xhat and the terms of its group (norm_finish.cu)
#include "norm_team.cuh"

namespace film::cuda {
namespace {

template <class T>
struct Params {
  NormParams<T> norm;
  NormCut cut;
  const float* terms;
  bool is_constant;  // each element is its own mean
};

template <class T, int V, bool PIXELS>
__global__ void __launch_bounds__(kNormThreads, 1) grad_input_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? V : 1;
  const NormParams<T>& norm = p.norm;
  const Place at = place_of<V, PIXELS>(norm, p.cut);
  if (!at.active) return;
  PacketFactors<V, PIXELS> by;
  by.read(norm, at.n, at.c);
  PacketStatistics<V, PIXELS> of;
  of.read(norm, at.n, at.c);

  Along<V, PIXELS> factor, constant, slope;
#pragma unroll
  for (int e = 0; e < W; ++e) {
    const int group = group_of(norm, at.n, at.c + e);
    factor.values[e] = p.is_constant ? 0.f : by.scale[e] * by.weight[e] * of.rstd[e];
    constant.values[e] = p.terms == nullptr ? 0.f : p.terms[group] * of.rstd[e];
    slope.values[e] = p.terms == nullptr ? 0.f : p.terms[norm.statistics + group] * of.rstd[e];
  }

  const T *x = norm.x.at(at.n, at.c, at.position), *g = norm.grad.at(at.n, at.c, at.position);
  T* dx = norm.out.at(at.n, at.c, at.position);
  const int64_t step = at.step * norm.x.p, grad_step = at.step * norm.grad.p, out_step = at.step * norm.out.p;
#pragma unroll 2
  for (int j = 0; j < at.count; ++j) {
    float xhat[V], grad[V];
    widen<T, V>(load<T, V>(x + j * step), xhat);
    widen<T, V>(load<T, V>(g + j * grad_step), grad);
    differentiate(norm, by, of, xhat, grad);
    // An input that is not finite has no part in the gradient where nothing is normalised.
#pragma unroll
    for (int e = 0; e < V; ++e) {
      grad[e] *= factor[e];
      if (p.terms != nullptr) grad[e] = grad[e] - constant[e] - xhat[e] * slope[e];
    }
    store<T, V>(dx + j * out_step, grad);
  }
}

}  // namespace

cudaError_t norm_grad_input(const NormProblem& p, const NormBackwardArgs& args, const NormCut& cut, const float* terms,
                            cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto pixels) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    Params<T> params{norm_params<T>(p, args.by, args.input), cut, terms, p.is_constant()};
    params.norm.grad = strided<const T>(args.grad);
    params.norm.out = strided<T>(args.grad_input);
    params.norm.kept = static_cast<const float*>(args.statistics);
    return launch(grad_input_kernel<T, V, decltype(pixels)::value>, dim3(static_cast<unsigned>(cut.blocks)),
                  dim3(static_cast<unsigned>(cut.threads())), 0, stream, params);
  });
}

}  // namespace film::cuda
