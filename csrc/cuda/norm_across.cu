// Normalisation of the channels of each position, forward and the input's gradient: a position's channels are shared
// out among the lanes of a warp where channels lie side by side, and among the rows of a block's threads where
// positions do. All passes are over what a block reads first, which is held in shared memory forward if it has room.
#include "norm_team.cuh"

namespace film::cuda {
namespace {

constexpr int kThreads = kNormThreads;
constexpr size_t kHeld = 40 * 1024;

template <class T>
struct Params {
  NormParams<T> norm;
  int tx, ty;      // threads
  int64_t steps;   // packets of a thread
  unsigned tiles;  // planes: of a sample
  bool held;       // x, in shared memory
  float* statistics;
};

// A thread's packets: `count` of them, `step` channels apart.
struct Place {
  int n;
  int64_t position;
  int c, step, count;
  bool active;
};

template <class T, int V, bool PIXELS>
__device__ __forceinline__ Place place_of(const Params<T>& p) {
  const NormParams<T>& norm = p.norm;
  const int thread = static_cast<int>(threadIdx.x), x = thread % p.tx, y = thread / p.tx;
  Place at;
  if constexpr (PIXELS) {
    const int64_t row = blockIdx.x * static_cast<int64_t>(p.ty) + y;
    at.active = row < norm.batch * norm.positions;
    at.n = at.active ? static_cast<int>(row / norm.positions) : 0;
    at.position = at.active ? row - at.n * norm.positions : 0;
    at.c = x * V, at.step = p.tx * V;
  } else {
    at.n = static_cast<int>(blockIdx.x / p.tiles);
    at.position = (static_cast<int64_t>(blockIdx.x % p.tiles) * p.tx + x) * V;
    at.active = at.position < norm.positions;
    at.position = at.active ? at.position : 0;
    at.c = y, at.step = p.ty;
  }
  at.count = at.active && at.c < norm.channels ? (norm.channels - at.c + at.step - 1) / at.step : 0;
  return at;
}

template <class T, int V, bool PIXELS>
__global__ void __launch_bounds__(kThreads, 1) forward_across_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? 1 : V;
  const NormParams<T>& norm = p.norm;
  const auto at = place_of<T, V, PIXELS>(p);
  auto* held = ptx::shared_memory<Packet<T, V>>();
  float* scratch = reinterpret_cast<float*>(held + (p.held ? p.steps * kThreads : 0));

  const T* x = norm.x.at(at.n, at.c, at.position);
  const int64_t step = at.step * norm.x.c;
  if (p.held) {
#pragma unroll 4
    for (int j = 0; j < at.count; ++j) held[j * kThreads + threadIdx.x] = load<T, V>(x + j * step);
  }
  const auto each = [&](const auto& body) {
#pragma unroll 1
    for (int j = 0; j < at.count; ++j) {
      float values[V];
      widen<T, V>(p.held ? held[j * kThreads + threadIdx.x] : load<T, V>(x + j * step), values);
      body(values);
    }
  };

  PacketStatistics<V, !PIXELS> of;
  float mean[W] = {}, second[W] = {};
  const float channels = static_cast<float>(norm.channels);
  if (norm.takes_mean()) {
    float rest[W];
    moments_of<!PIXELS, W, V>(each, channels, scratch, p.tx, p.ty, mean, rest, second);
#pragma unroll
    for (int e = 0; e < W; ++e) mean[e] += rest[e];
  } else {
    each([&](float (&values)[V]) {
#pragma unroll
      for (int e = 0; e < V; ++e) values[e] *= values[e];
      add_packet(second, values);
    });
    sum_of_team<!PIXELS>(second, scratch, p.tx, p.ty);
  }
  const bool first = at.active && at.c == 0;
#pragma unroll
  for (int e = 0; e < W; ++e) {
    second[e] = norm.norm == Norm::l2 ? sqrtf(second[e]) : second[e] / channels;
    of.mean.values[e] = mean[e], of.rstd.values[e] = norm.rstd_of(second[e]);
    const int64_t number = at.n * norm.positions + at.position + e;
    if (first && norm.takes_mean()) p.statistics[number] = mean[e];
    if (first) p.statistics[number + (norm.takes_mean() ? norm.statistics : 0)] = second[e];
  }

  T* y = norm.out.at(at.n, at.c, at.position);
  const int64_t out_step = at.step * norm.out.c;
  int j = 0;
  each([&](float (&values)[V]) {
    PacketFactors<V, PIXELS> by;
    by.read(norm, at.n, at.c + j * at.step);
    modulate(norm, by, of, values);
    store<T, V>(y + j * out_step, values);
    ++j;
  });
}

template <class T, int V, bool PIXELS>
__global__ void __launch_bounds__(kThreads, 1) grad_input_across_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? 1 : V;
  const NormParams<T>& norm = p.norm;
  const auto at = place_of<T, V, PIXELS>(p);
  float* scratch = ptx::shared_memory<float>();
  const T *x = norm.x.at(at.n, at.c, at.position), *g = norm.grad.at(at.n, at.c, at.position);
  const int64_t step = at.step * norm.x.c, grad_step = at.step * norm.grad.c;
  PacketStatistics<V, !PIXELS> of;
  of.read_position(norm, at.n, at.position);

  // The gradient of xhat, in place of that of y, and xhat.
  const auto each = [&](const auto& body) {
#pragma unroll 1
    for (int j = 0; j < at.count; ++j) {
      float xhat[V], grad[V];
      widen<T, V>(load<T, V>(x + j * step), xhat);
      widen<T, V>(load<T, V>(g + j * grad_step), grad);
      PacketFactors<V, PIXELS> by;
      by.read(norm, at.n, at.c + j * at.step);
      differentiate(norm, by, of, xhat, grad);
#pragma unroll
      for (int e = 0; e < V; ++e) grad[e] *= by.scale[e] * by.weight[e];
      body(j, xhat, grad);
    }
  };

  float constant[W] = {}, slope[W] = {};
  each([&](int, float (&xhat)[V], float (&grad)[V]) {
#pragma unroll
    for (int e = 0; e < V; ++e) xhat[e] *= grad[e];
    add_packet(constant, grad);
    add_packet(slope, xhat);
  });
  sum_of_team<!PIXELS>(constant, scratch, p.tx, p.ty);
  sum_of_team<!PIXELS>(slope, scratch, p.tx, p.ty);
  const float count = norm.norm == Norm::l2 ? 1.f : static_cast<float>(norm.channels);
#pragma unroll
  for (int e = 0; e < W; ++e) {
    constant[e] = norm.takes_mean() ? constant[e] / count : 0;
    // A vector shorter than eps has been scaled by a constant.
    const bool scaled = norm.norm == Norm::l2 && norm.kept[at.n * norm.positions + at.position + e] < norm.eps;
    slope[e] = scaled ? 0 : slope[e] / count;
  }

  T* dx = norm.out.at(at.n, at.c, at.position);
  const int64_t out_step = at.step * norm.out.c;
  const float any = norm.takes_mean() && norm.channels == 1 ? 0.f : 1.f;  // each element is its own mean
  each([&](int j, float (&xhat)[V], float (&grad)[V]) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const int w = W == V ? e : 0;
      grad[e] = any * of.rstd[e] * (grad[e] - constant[w] - xhat[e] * slope[w]);
    }
    store<T, V>(dx + j * out_step, grad);
  });
}

// The threads that the channels or the positions take, and where the loops end.
template <class T>
dim3 share_out(Params<T>& params, const NormProblem& p, bool pixels, int vector) {
  params.tx = 1;
  const int64_t packets = (pixels ? p.channels : p.positions) / vector, most = pixels ? 32 : 8;
  while (params.tx < most && params.tx < packets) params.tx *= 2;
  params.ty = kThreads / params.tx;
  params.tiles = pixels ? 1 : static_cast<unsigned>(norm_ceil_div(packets, params.tx));
  params.steps = norm_ceil_div(pixels ? packets : p.channels, pixels ? params.tx : params.ty);
  params.held = static_cast<size_t>(params.steps) * kThreads * vector * sizeof(T) <= kHeld;
  return dim3(static_cast<unsigned>(pixels ? norm_ceil_div(p.batch * p.positions, params.ty) : p.batch * params.tiles));
}

}  // namespace

cudaError_t norm_forward_across(const NormProblem& p, const NormForwardArgs& args, const NormCut& cut,
                                cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto layout) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    Params<T> params{norm_params<T>(p, args.by, args.input), 0, 0, 0, 0, false, static_cast<float*>(args.statistics)};
    params.norm.out = strided<T>(args.output);
    const dim3 blocks = share_out(params, p, cut.pixels, V);
    const size_t held = params.held ? params.steps * kThreads * V * sizeof(T) : 0;
    return launch(forward_across_kernel<T, V, decltype(layout)::value>, blocks, dim3(kThreads),
                  held + (cut.pixels ? 0 : kThreads * V * sizeof(float)), stream, params);
  });
}

cudaError_t norm_grad_input_across(const NormProblem& p, const NormBackwardArgs& args, const NormCut& cut,
                                   cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto layout) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    Params<T> params{norm_params<T>(p, args.by, args.input), 0, 0, 0, 0, false, nullptr};
    params.norm.grad = strided<const T>(args.grad);
    params.norm.out = strided<T>(args.grad_input);
    params.norm.kept = static_cast<const float*>(args.statistics);
    const dim3 blocks = share_out(params, p, cut.pixels, V);
    return launch(grad_input_across_kernel<T, V, decltype(layout)::value>, blocks, dim3(kThreads),
                  cut.pixels ? 0 : kThreads * V * sizeof(float), stream, params);
  });
}

}  // namespace film::cuda
