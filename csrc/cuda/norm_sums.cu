// What the gradients of the factors, and of the input where statistics are of groups, are made of: sums over the
// positions of a chunk for each of its channels.
#include "norm_team.cuh"

namespace film::cuda {
namespace {

template <class T>
struct Params {
  NormParams<T> norm;
  NormCut cut;
  NormSums sums;
};

template <class T, int V, bool PIXELS, bool POSITIONS>
__global__ void __launch_bounds__(kNormThreads, 1) sums_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? V : 1;
  constexpr bool VARY = PIXELS != POSITIONS;
  const NormParams<T>& norm = p.norm;
  const Place at = place_of<V, PIXELS>(norm, p.cut);
  float* scratch = ptx::shared_memory<float>();
  PacketFactors<V, PIXELS> by;
  PacketStatistics<V, VARY> of;
  if (at.active) {
    by.read(norm, at.n, at.c);
    if constexpr (!POSITIONS) of.read(norm, at.n, at.c);
  }

  const T *x = norm.x.at(at.n, at.c, at.position), *g = norm.grad.at(at.n, at.c, at.position);
  const int64_t step = at.step * norm.x.p, grad_step = at.step * norm.grad.p;
  const bool of_z = p.sums.kinds == 3, products = p.sums.kinds == 4;
  float sums[4][W] = {};
  for (int j = 0; j < at.count; ++j) {
    float xhat[V], d[V], third[V], product[V];
    widen<T, V>(load<T, V>(x + j * step), xhat);
    widen<T, V>(load<T, V>(g + j * grad_step), d);
    if constexpr (POSITIONS) of.read_position(norm, at.n, at.position + static_cast<int64_t>(j) * at.step);
    if (products) {
#pragma unroll
      for (int e = 0; e < V; ++e) third[e] = d[e];
      differentiate(norm, by, of, xhat, d, &product);
      add_packet(sums[2], third);
      add_packet(sums[3], product);
    } else {
      differentiate(norm, by, of, xhat, d);
    }
    if (of_z) {
#pragma unroll
      for (int e = 0; e < V; ++e) third[e] = d[e] * (xhat[e] * by.weight[e] + by.bias[e]);
      add_packet(sums[2], third);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) xhat[e] *= d[e];
    add_packet(sums[0], d);
    add_packet(sums[1], xhat);
  }

  const int64_t all = static_cast<int64_t>(norm.batch) * norm.channels * p.cut.chunks;
  for (int kind = 0; kind < p.sums.kinds; ++kind) {
    float total[W];
#pragma unroll
    for (int e = 0; e < W; ++e)
      total[e] = kind == 0 ? sums[0][e] : kind == 1 ? sums[1][e] : kind == 2 ? sums[2][e] : sums[3][e];
    sum_of_team<PIXELS>(total, scratch, p.cut.tx, p.cut.ty);
    if (!at.active || (PIXELS ? at.y : at.x) != 0) continue;
#pragma unroll
    for (int e = 0; e < W; ++e)
      p.sums.data[kind * all + (static_cast<int64_t>(at.n) * norm.channels + at.c + e) * p.cut.chunks + at.chunk] =
          total[e];
  }
}

}  // namespace

cudaError_t norm_sums(const NormProblem& p, const NormBackwardArgs& args, const NormCut& cut, const NormSums& sums,
                      cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto pixels) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    constexpr bool PIXELS = decltype(pixels)::value;
    Params<T> params{norm_params<T>(p, args.by, args.input), cut, sums};
    params.norm.grad = strided<const T>(args.grad);
    params.norm.kept = static_cast<const float*>(args.statistics);
    const auto kernel = p.is_of_positions() ? sums_kernel<T, V, PIXELS, true> : sums_kernel<T, V, PIXELS, false>;
    return launch(kernel, dim3(static_cast<unsigned>(cut.blocks)), dim3(static_cast<unsigned>(cut.threads())),
                  PIXELS ? cut.threads() * V * sizeof(float) : 0, stream, params);
  });
}

}  // namespace film::cuda
