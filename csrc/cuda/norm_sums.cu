// What the gradients of the factors, and of the input where statistics are of groups, are made of: sums over the
// positions of a chunk for each of its channels.
#include "norm_ahead.cuh"
#include "norm_team.cuh"

namespace film::cuda {
namespace {

template <class T>
struct Params {
  NormParams<T> norm;
  NormCut cut;
  NormSums sums;
};

template <class T, int V, bool PIXELS, bool POSITIONS, int KINDS>
__global__ void __launch_bounds__(kNormThreads, PIXELS&& KINDS > 2 ? 2 : kNormBlocks) sums_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? V : 1;
  constexpr bool VARY = PIXELS != POSITIONS;
  const NormParams<T>& norm = p.norm;
  const Place at = place_of<V, PIXELS>(norm, p.cut);
  PacketFactors<V, PIXELS> by;
  PacketStatistics<V, VARY> of;
  if (at.active) {
    by.read(norm, at.n, at.c);
    if constexpr (!POSITIONS) of.read(norm, at.n, at.c);
  }

  void* shared = ptx::shared_memory<void>();
  Ahead<T, V, 2> ahead(shared, {norm.x.at(at.n, at.c, at.position), norm.grad.at(at.n, at.c, at.position)},
                       {at.step * norm.x.p, at.step * norm.grad.p}, at.count);
  float sums[KINDS][W] = {};
  with_activation<MathOf<T>>(norm.activation, norm.lower_slope, [&](auto act) {
#pragma unroll 1
    for (int j = 0; j < at.count; ++j) {
      Packet<T, V> found[2];
      ahead.take(j, found);
      float xhat[V], d[V];
      widen<T, V>(found[0], xhat);
      widen<T, V>(found[1], d);
      if constexpr (POSITIONS) of.read_position(norm, at.n, at.position + static_cast<int64_t>(j) * at.step);
      if constexpr (KINDS == 4) {
        float more[V];
#pragma unroll
        for (int e = 0; e < V; ++e) more[e] = d[e];
        add_packet(sums[2], more);
        differentiate(act, by, of, xhat, d, &more);
        add_packet(sums[3], more);
      } else {
        differentiate(act, by, of, xhat, d);
      }
      if constexpr (KINDS == 3) {
        float more[V];
        const auto weight = norm.weight.template read<V, PIXELS>(0, at.c);
        const auto bias = norm.bias.template read<V, PIXELS>(0, at.c);
#pragma unroll
        for (int e = 0; e < V; ++e) more[e] = d[e] * (xhat[e] * weight[e] + bias[e]);
        add_packet(sums[2], more);
      }
#pragma unroll
      for (int e = 0; e < V; ++e) xhat[e] *= d[e];
      add_packet(sums[0], d);
      add_packet(sums[1], xhat);
    }
  });

  const int64_t all = static_cast<int64_t>(norm.batch) * norm.channels * p.cut.chunks;
#pragma unroll
  for (int kind = 0; kind < KINDS; ++kind) {
    __syncthreads();  // what is summed takes the place of packets
    sum_of_team<PIXELS>(sums[kind], static_cast<float*>(shared), p.cut.tx, p.cut.ty);
    if (!at.active || (PIXELS ? at.y : at.x) != 0) continue;
#pragma unroll
    for (int e = 0; e < W; ++e)
      p.sums.data[kind * all + (static_cast<int64_t>(at.n) * norm.channels + at.c + e) * p.cut.chunks + at.chunk] =
          sums[kind][e];
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
    const auto kernel_of = [&](auto positions) {
      constexpr bool POSITIONS = decltype(positions)::value;
      return sums.kinds == 4   ? sums_kernel<T, V, PIXELS, POSITIONS, 4>
             : sums.kinds == 3 ? sums_kernel<T, V, PIXELS, POSITIONS, 3>
                               : sums_kernel<T, V, PIXELS, POSITIONS, 2>;
    };
    const auto kernel = p.is_of_positions() ? kernel_of(std::true_type()) : kernel_of(std::false_type());
    const size_t scratch = PIXELS ? cut.threads() * V * sizeof(float) : 0;
    return launch(kernel, dim3(static_cast<unsigned>(cut.blocks)), dim3(static_cast<unsigned>(cut.threads())),
                  std::max(Ahead<T, V, 2>::bytes(cut.threads()), scratch), stream, params);
  });
}

}  // namespace film::cuda
