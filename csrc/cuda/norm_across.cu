// Normalisation of the channels of each position, forward and the input's gradient: a position's channels are shared
// out among the lanes of a warp where channels lie side by side, and among the rows of a block's threads where
// positions do. All that a thread works on is asked for at once, into shared memory, where there is room for it; the
// channels of a position are few as a rule, and then a thread has several positions.
#include "norm_ahead.cuh"
#include "norm_team.cuh"

namespace film::cuda {
namespace {

constexpr int kThreads = kNormThreads;
constexpr int kHeld = 8;  // packets of a tensor that a thread asks for at once, at most

template <class T>
struct Params {
  NormParams<T> norm;
  int tx, ty;      // threads
  int steps;       // packets that a thread has of a position
  int positions;   // of a thread, of one sample
  int64_t shares;  // of a sample: of positions that are `shares` apart, or tiles of packets of them
  bool held;
  float* statistics;

  __device__ __forceinline__ int packets() const { return held ? positions * steps * kThreads : 0; }
};

// A thread's packets: `count` of each position, `step` channels apart.
struct Place {
  int n;
  int64_t position, apart;  // the first, and from one to the next
  int positions;
  int c, step, count;
  bool active;
};

template <class T, int V, bool PIXELS>
__device__ __forceinline__ Place place_of(const Params<T>& p) {
  const NormParams<T>& norm = p.norm;
  const int thread = static_cast<int>(threadIdx.x), x = thread % p.tx, y = thread / p.tx;
  Place at;
  if constexpr (PIXELS) {
    const int64_t share = blockIdx.x * static_cast<int64_t>(p.ty) + y;
    const bool small = share <= 0x7fffffff && p.shares <= 0x7fffffff;  // a third of the time
    const int64_t n = small ? static_cast<int>(share) / static_cast<int>(p.shares) : share / p.shares;
    at.active = n < norm.batch;
    at.n = at.active ? static_cast<int>(n) : 0;
    at.position = at.active ? share - n * p.shares : 0;
    at.apart = p.shares;
    at.positions = 0;
    for (int64_t q = at.position; at.active && q < norm.positions; q += at.apart) ++at.positions;
    at.c = x * V, at.step = p.tx * V;
  } else {
    const unsigned shares = static_cast<unsigned>(p.shares);
    at.n = static_cast<int>(blockIdx.x / shares);
    at.position = (static_cast<int64_t>(blockIdx.x % shares) * p.tx + x) * V;
    at.active = at.position < norm.positions;
    at.position = at.active ? at.position : 0;
    at.apart = 0;
    at.positions = 1;  // of the block
    at.c = y, at.step = p.ty;
  }
  at.count = at.active && at.c < norm.channels ? (norm.channels - at.c + at.step - 1) / at.step : 0;
  return at;
}

// Asks for all packets of a thread.
template <class T, int V>
__device__ __forceinline__ void hold_all(const Params<T>& p, const Place& at, Packet<T, V>* held,
                                         const Strided<const T>& from) {
  for (int r = 0; r < at.positions; ++r)
    hold<T, V>(held + r * p.steps * kThreads, kThreads, from.at(at.n, at.c, at.position + r * at.apart),
               at.step * from.c, at.count);
}

template <class T, int V, bool PIXELS>
__global__ void __launch_bounds__(kThreads, kNormBlocks) forward_across_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? 1 : V;
  const NormParams<T>& norm = p.norm;
  const auto at = place_of<T, V, PIXELS>(p);
  auto* packets = ptx::shared_memory<Packet<T, V>>();
  float* scratch = reinterpret_cast<float*>(packets + p.packets());
  Packet<T, V>* const held = packets + threadIdx.x;

  if (p.held) hold_all<T, V>(p, at, held, norm.x);
  const bool once = p.steps == 1;  // the same channels at every position
  PacketFactors<V, PIXELS> by;
  if (once && at.count > 0) by.read(norm, at.n, at.c);
  if (p.held) wait_for_held();

  const float channels = static_cast<float>(norm.channels);
#pragma unroll 1
  for (int r = 0; r < p.positions; ++r) {
    const int count = r < at.positions ? at.count : 0;  // lanes without a position go along
    const int64_t position = at.position + r * at.apart;
    const T* x = norm.x.at(at.n, at.c, position);
    const int64_t step = at.step * norm.x.c;
    const auto each = [&](const auto& body) {
#pragma unroll 2
      for (int j = 0; j < count; ++j) {
        float values[V];
        widen<T, V>(p.held ? held[(r * p.steps + j) * kThreads] : load<T, V>(x + j * step), values);
        body(values, j);
      }
    };

    PacketStatistics<V, !PIXELS> of;
    float mean[W] = {}, second[W] = {};
    if (norm.takes_mean()) {
      float rest[W];
      moments_of<!PIXELS, W, V>([&](const auto& body) { each([&](float (&v)[V], int) { body(v); }); }, channels,
                                scratch, p.tx, p.ty, mean, rest, second);
#pragma unroll
      for (int e = 0; e < W; ++e) mean[e] += rest[e];
    } else {
      each([&](float (&values)[V], int) {
#pragma unroll
        for (int e = 0; e < V; ++e) values[e] *= values[e];
        add_packet(second, values);
      });
      sum_of_team<!PIXELS>(second, scratch, p.tx, p.ty);
    }
    const bool first = count > 0 && at.c == 0;
#pragma unroll
    for (int e = 0; e < W; ++e) {
      second[e] = norm.norm == Norm::l2 ? sqrtf(second[e]) : second[e] / channels;
      of.mean.values[e] = mean[e], of.rstd.values[e] = norm.rstd_of(second[e]);
      const int64_t number = at.n * norm.positions + position + e;
      if (first && norm.takes_mean()) p.statistics[number] = mean[e];
      if (first) p.statistics[number + (norm.takes_mean() ? norm.statistics : 0)] = second[e];
    }

    T* y = norm.out.at(at.n, at.c, position);
    const int64_t out_step = at.step * norm.out.c;
    with_activation<MathOf<T>>(norm.activation, norm.lower_slope, [&](auto act) {
      each([&](float (&values)[V], int j) {
        const int c = at.c + j * at.step;
        if (!once) by.read(norm, at.n, c);
        modulate(norm, act, by, of, at.n, c, values);
        store<T, V>(y + j * out_step, values);
      });
    });
  }
}

template <class T, int V, bool PIXELS>
__global__ void __launch_bounds__(kThreads, kNormBlocks) grad_input_across_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? 1 : V;
  const NormParams<T>& norm = p.norm;
  const auto at = place_of<T, V, PIXELS>(p);
  auto* packets = ptx::shared_memory<Packet<T, V>>();
  Packet<T, V>*const held_x = packets + threadIdx.x, *const held_g = held_x + p.packets();
  float* scratch = reinterpret_cast<float*>(packets + 2 * p.packets());

  if (p.held) hold_all<T, V>(p, at, held_x, norm.x), hold_all<T, V>(p, at, held_g, norm.grad);
  const bool once = p.steps == 1;
  PacketFactors<V, PIXELS> by;
  if (once && at.count > 0) by.read(norm, at.n, at.c);
  if (p.held) wait_for_held();

  const float members = norm.norm == Norm::l2 ? 1.f : static_cast<float>(norm.channels);
  const float any = norm.takes_mean() && norm.channels == 1 ? 0.f : 1.f;  // each element is its own mean
#pragma unroll 1
  for (int r = 0; r < p.positions; ++r) {
    const int count = r < at.positions ? at.count : 0;
    const int64_t position = at.position + r * at.apart;
    const T *x = norm.x.at(at.n, at.c, position), *g = norm.grad.at(at.n, at.c, position);
    const int64_t step = at.step * norm.x.c, grad_step = at.step * norm.grad.c;
    PacketStatistics<V, !PIXELS> of;
    if (count > 0) of.read_position(norm, at.n, position);

    // The gradient of xhat, in place of that of y, and xhat.
    const auto each = [&](const auto& body) {
      with_activation<MathOf<T>>(norm.activation, norm.lower_slope, [&](auto act) {
#pragma unroll 1
        for (int j = 0; j < count; ++j) {
          const int slot = (r * p.steps + j) * kThreads, c = at.c + j * at.step;
          float xhat[V], grad[V];
          widen<T, V>(p.held ? held_x[slot] : load<T, V>(x + j * step), xhat);
          widen<T, V>(p.held ? held_g[slot] : load<T, V>(g + j * grad_step), grad);
          if (!once) by.read(norm, at.n, c);
          differentiate(act, by, of, xhat, grad);
          scale_gradient(norm, by, at.n, c, grad);
          body(j, xhat, grad);
        }
      });
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
#pragma unroll
    for (int e = 0; e < W; ++e) {
      constant[e] = norm.takes_mean() ? constant[e] / members : 0;
      // A vector shorter than eps has been scaled by a constant.
      const bool scaled =
          norm.norm == Norm::l2 && count > 0 && norm.kept[at.n * norm.positions + position + e] < norm.eps;
      slope[e] = scaled ? 0 : slope[e] / members;
    }

    T* dx = norm.out.at(at.n, at.c, position);
    const int64_t out_step = at.step * norm.out.c;
    each([&](int j, float (&xhat)[V], float (&grad)[V]) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int w = W == V ? e : 0;
        grad[e] = any * of.rstd[e] * (grad[e] - constant[w] - xhat[e] * slope[w]);
      }
      store<T, V>(dx + j * out_step, grad);
    });
  }
}

// The threads that the channels or the positions take, how many positions a thread has, and the blocks.
template <class T>
dim3 share_out(Params<T>& params, const NormProblem& p, bool pixels, int vector) {
  params.tx = 1;
  const int64_t packets = (pixels ? p.channels : p.positions) / vector, most = pixels ? 32 : 8;
  while (params.tx < most && params.tx < packets) params.tx *= 2;
  params.ty = kThreads / params.tx;
  const int64_t steps = norm_ceil_div(pixels ? packets : p.channels, pixels ? params.tx : params.ty);
  params.steps = static_cast<int>(steps);
  params.held = steps <= kHeld;
  params.positions = pixels ? static_cast<int>(std::max<int64_t>(kHeld / steps, 1)) : 1;
  params.shares = pixels ? norm_ceil_div(p.positions, params.positions) : norm_ceil_div(packets, params.tx);
  const int64_t all = p.batch * params.shares;
  return dim3(static_cast<unsigned>(pixels ? norm_ceil_div(all, params.ty) : all));
}

// Shared memory of a block, of `tensors` that it holds.
template <class T, int V>
size_t shared_bytes(const Params<T>& params, bool pixels, int tensors) {
  const size_t held = params.held ? tensors * params.positions * params.steps * kThreads * sizeof(Packet<T, V>) : 0;
  return held + (pixels ? 0 : kThreads * V * sizeof(float));
}

}  // namespace

cudaError_t norm_forward_across(const NormProblem& p, const NormForwardArgs& args, const NormCut& cut,
                                cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto layout) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    Params<T> params{};
    params.norm = norm_params<T>(p, args.by, args.input);
    params.norm.out = strided<T>(args.output);
    params.statistics = static_cast<float*>(args.statistics);
    const dim3 blocks = share_out(params, p, cut.pixels, V);
    return launch(forward_across_kernel<T, V, decltype(layout)::value>, blocks, dim3(kThreads),
                  shared_bytes<T, V>(params, cut.pixels, 1), stream, params);
  });
}

cudaError_t norm_grad_input_across(const NormProblem& p, const NormBackwardArgs& args, const NormCut& cut,
                                   cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto layout) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    Params<T> params{};
    params.norm = norm_params<T>(p, args.by, args.input);
    params.norm.grad = strided<const T>(args.grad);
    params.norm.out = strided<T>(args.grad_input);
    params.norm.kept = static_cast<const float*>(args.statistics);
    const dim3 blocks = share_out(params, p, cut.pixels, V);
    return launch(grad_input_across_kernel<T, V, decltype(layout)::value>, blocks, dim3(kThreads),
                  shared_bytes<T, V>(params, cut.pixels, 2), stream, params);
  });
}

}  // namespace film::cuda
