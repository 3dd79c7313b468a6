// dx where statistics are of groups of channels or of channels, or there are none: one pass over x and the gradient.
//   dx = rstd * (d - term - xhat * other term), with d the gradient of xhat and the terms of its group (norm_finish.cu)
#include "norm_ahead.cuh"
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
__global__ void __launch_bounds__(kNormThreads, kNormBlocks) grad_input_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? V : 1;
  const NormParams<T>& norm = p.norm;
  const Place at = place_of<V, PIXELS>(norm, p.cut);
  if (!at.active) return;
  PacketFactors<V, PIXELS> by;
  by.read(norm, at.n, at.c);
  PacketStatistics<V, PIXELS> of;
  of.read(norm, at.n, at.c);

  Along<V, PIXELS> constant, slope;
#pragma unroll
  for (int e = 0; e < W; ++e) {
    const int group = group_of(norm, at.n, at.c + e);
    constant.values[e] = p.terms == nullptr ? 0.f : p.terms[group];
    slope.values[e] = p.terms == nullptr ? 0.f : p.terms[norm.statistics + group];
  }

  T* dx = norm.out.at(at.n, at.c, at.position);
  const int64_t out_step = at.step * norm.out.p;
  const float any = p.is_constant ? 0.f : 1.f;
  Ahead<T, V, 2> ahead(ptx::shared_memory<void>(),
                       {norm.x.at(at.n, at.c, at.position), norm.grad.at(at.n, at.c, at.position)},
                       {at.step * norm.x.p, at.step * norm.grad.p}, at.count);
  with_activation<MathOf<T>>(norm.activation, norm.lower_slope, [&](auto act) {
#pragma unroll 1
    for (int j = 0; j < at.count; ++j) {
      Packet<T, V> found[2];
      ahead.take(j, found);
      float xhat[V], grad[V];
      widen<T, V>(found[0], xhat);
      widen<T, V>(found[1], grad);
      differentiate(act, by, of, xhat, grad);
      scale_gradient(norm, by, at.n, at.c, grad);
      // An input that is not finite has no part in the gradient where nothing is normalised.
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (p.terms != nullptr) grad[e] = grad[e] - constant[e] - xhat[e] * slope[e];
        grad[e] *= any * of.rstd[e];
      }
      store<T, V>(dx, grad);
      dx += out_step;
    }
  });
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
                  dim3(static_cast<unsigned>(cut.threads())), Ahead<T, V, 2>::bytes(cut.threads()), stream, params);
  });
}

}  // namespace film::cuda
