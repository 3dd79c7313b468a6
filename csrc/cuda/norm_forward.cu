// y where statistics are of groups of channels of a sample, or of channels. Where one block has all of a group it holds
// it in shared memory and x is read once. Otherwise blocks write what they find for each channel of their chunk, and a
// second kernel puts that together, in order, and has y. Means and squares around them are found by two passes over
// what is at hand, and are joined without a sum of squares that could cancel.
#include "norm_ahead.cuh"
#include "norm_team.cuh"

namespace film::cuda {
namespace {

enum class Stage { measure, apply, fused };

template <class T>
struct Params {
  NormParams<T> norm;
  NormCut cut;
  float* moments;     // (3, N, C, chunks), as MomentsOfLines reads them
  float* statistics;  // (2, groups)
  bool merged;        // they are there already, when y is made
};

// What was found of a group's lines: by all blocks, or `fused`, by one in its shared memory from `from` on, `pitch`
// from one kind of number to the next.
template <class T>
__device__ __forceinline__ MomentsOfLines lines_of(const Params<T>& p, int channel, int64_t sample, bool fused,
                                                   const float* from, int64_t pitch) {
  const NormParams<T>& norm = p.norm;
  const bool batch = norm.norm == Norm::batch;
  const int chunks = static_cast<int>(p.cut.chunks);
  if (!fused) {
    from = p.moments + (sample * norm.channels + channel) * chunks;
    pitch = static_cast<int64_t>(norm.batch) * norm.channels * chunks;
  }
  return {from,
          from + pitch,
          from + 2 * pitch,
          batch ? norm.batch : norm.each,
          chunks,
          batch && !fused ? static_cast<int64_t>(norm.channels) * chunks : chunks,
          p.cut.size,
          norm.positions};
}

template <class T>
__device__ __forceinline__ void write_statistics(const Params<T>& p, int group, float mean, float variance) {
  p.statistics[group] = mean;
  p.statistics[p.norm.statistics + group] = variance;
}

// A warp for each group: where so much was found of it that every block would spend its time on putting it together.
template <class T>
__global__ void __launch_bounds__(kNormThreads, 1) merge_kernel(const Params<T> p) {
  const NormParams<T>& norm = p.norm;
  const int group = static_cast<int>(blockIdx.x) * (kNormThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (group >= norm.statistics) return;
  const bool batch = norm.norm == Norm::batch;
  const int channel = batch ? group : group % norm.groups * norm.each;
  const Moments m = lines_of(p, channel, batch ? 0 : group / norm.groups, false, nullptr, 0).merged();
  if (threadIdx.x % 32 == 0)
    write_statistics(p, group, static_cast<float>(m.mean), static_cast<float>(m.squares) / static_cast<float>(m.count));
}

// A block's statistics: for each of its groups, from the one that its first channel belongs to on, mean and rstd.
template <class T>
struct BlockStatistics {
  float *mean, *rstd;
  int first;  // of the groups, as statistics are numbered

  // By whole warps, one group each: from moments in the block's shared memory, or those of all blocks. `writer` says
  // whether this block is to write a group's statistics, if it has the group's first channel.
  __device__ void find(const Params<T>& p, const Place& at, bool pixels, const float* found, int found_pitch,
                       bool writer) const {
    const NormParams<T>& norm = p.norm;
    const bool batch = norm.norm == Norm::batch, fused = found != nullptr;
    const int each = batch ? 1 : norm.each;
    const int end = min(at.slab + p.cut.tx * p.cut.vector, norm.channels);
    const int count = pixels ? (end - 1) / each - at.slab / each + 1 : 1;
    for (int i = threadIdx.x; p.merged && i < count; i += blockDim.x) {
      mean[i] = p.statistics[first + i];
      rstd[i] = norm.rstd_of(p.statistics[norm.statistics + first + i]);
    }
    for (int i = threadIdx.x / 32; !p.merged && i < count; i += blockDim.x / 32) {
      const int group = first + i, channel = (batch ? group : group % norm.groups) * each;
      const float* from = fused ? found + (pixels ? channel - at.slab : 0) : nullptr;
      const Moments m = lines_of(p, channel, batch ? 0 : group / norm.groups, fused, from, found_pitch).merged();
      if (threadIdx.x % 32 != 0) continue;
      const float variance = static_cast<float>(m.squares) / static_cast<float>(m.count);
      mean[i] = static_cast<float>(m.mean), rstd[i] = norm.rstd_of(variance);
      if (!writer || (pixels && channel < at.slab)) continue;
      write_statistics(p, group, mean[i], variance);
    }
  }
};

// Of a block, in its shared memory.
template <class T, int V, Stage STAGE>
__host__ __device__ __forceinline__ int64_t packets_of(const NormCut& cut, int threads) {
  return (STAGE == Stage::apply ? Ahead<T, V, 1>::kPlaces : cut.steps) * threads;
}

template <class T, int V, bool PIXELS, Stage STAGE>
__global__ void __launch_bounds__(STAGE == Stage::fused ? kNormFusedThreads : kNormThreads,
                                  STAGE == Stage::fused ? kNormBlocks - 1 : kNormBlocks)
    forward_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? V : 1;
  const NormParams<T>& norm = p.norm;
  const NormCut& cut = p.cut;
  const Place at = place_of<V, PIXELS>(norm, cut);
  const int threads = static_cast<int>(blockDim.x), columns = PIXELS ? cut.tx * V : cut.ty;

  // Shared memory: packets, what chunks found, statistics, scratch.
  auto* packets = ptx::shared_memory<Packet<T, V>>();
  float* found = reinterpret_cast<float*>(packets + packets_of<T, V, STAGE>(cut, threads));
  float* scratch = found + 5 * columns;

  // What is read from memory is asked for before anything waits.
  const T* x = norm.x.at(at.n, at.c, at.position);
  const int64_t step = at.step * norm.x.p;
  Packet<T, V>* held = packets + threadIdx.x;
  if constexpr (STAGE != Stage::apply) hold<T, V>(held, threads, x, step, at.count);
  Ahead<T, V, 1> ahead(packets, {x}, {step}, STAGE == Stage::apply ? at.count : 0);
  PacketFactors<V, PIXELS> by;
  if (STAGE != Stage::measure && at.active) by.read(norm, at.n, at.c);

  if constexpr (STAGE != Stage::apply) {
    wait_for_held();
    float near[W], rest[W], squares[W];
    moments_of<PIXELS, W, V>(
        [&](const auto& body) {
#pragma unroll 4
          for (int j = 0; j < at.count; ++j) {
            float values[V];
            widen<T, V>(held[j * threads], values);
            body(values);
          }
        },
        static_cast<float>(at.length), scratch, cut.tx, cut.ty, near, rest, squares);
    if (at.active && (PIXELS ? at.y : at.x) == 0) {
#pragma unroll
      for (int e = 0; e < W; ++e) {
        if constexpr (STAGE == Stage::fused) {
          const int column = PIXELS ? at.x * V + e : at.y;
          found[column] = near[e], found[columns + column] = rest[e], found[2 * columns + column] = squares[e];
        } else {
          const int64_t number = (static_cast<int64_t>(at.n) * norm.channels + at.c + e) * cut.chunks + at.chunk;
          const int64_t all = static_cast<int64_t>(norm.batch) * norm.channels * cut.chunks;
          p.moments[number] = near[e], p.moments[all + number] = rest[e], p.moments[2 * all + number] = squares[e];
        }
      }
    }
  }
  if constexpr (STAGE == Stage::measure) return;

  PacketStatistics<V, PIXELS> of;
  if (norm.norm != Norm::none) {
    const bool batch = norm.norm == Norm::batch;
    const int first = PIXELS ? group_of(norm, at.n, at.slab) : at.group;
    const BlockStatistics<T> statistics{found + 3 * columns, found + 4 * columns, first};
    const bool writer = PIXELS ? at.chunk == 0 && (!batch || at.n == 0) : blockIdx.x % cut.per_group == 0;
    __syncthreads();
    statistics.find(p, at, PIXELS, STAGE == Stage::fused ? found : nullptr, columns, writer);
    __syncthreads();
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const int i = PIXELS ? group_of(norm, at.n, min(at.c + e, norm.channels - 1)) - first : 0;
      of.mean.values[e] = statistics.mean[i], of.rstd.values[e] = statistics.rstd[i];
    }
  } else {
#pragma unroll
    for (int e = 0; e < W; ++e) of.mean.values[e] = 0, of.rstd.values[e] = 1;
  }
  if (!at.active) return;

  // One product for both.
#pragma unroll
  for (int e = 0; e < W; ++e) by.scale.values[e] *= of.rstd[e], of.rstd.values[e] = 1;
  T* y = norm.out.at(at.n, at.c, at.position);
  const int64_t out_step = at.step * norm.out.p;
  with_activation<MathOf<T>>(norm.activation, norm.lower_slope, [&](auto act) {
#pragma unroll 1
    for (int j = 0; j < at.count; ++j) {
      Packet<T, V> packet[1];
      if constexpr (STAGE == Stage::fused)
        packet[0] = held[j * threads];
      else
        ahead.take(j, packet);
      float values[V];
      widen<T, V>(packet[0], values);
      modulate(norm, act, by, of, at.n, at.c, values);
      store<T, V>(y, values);
      y += out_step;
    }
  });
}

}  // namespace

cudaError_t norm_forward(const NormProblem& p, const NormForwardArgs& args, const NormCut& cut, float* moments,
                         cudaStream_t stream) {
  return with_kinds(p.dtype, cut.vector > 1, cut.pixels, [&](auto element, auto vector, auto pixels) {
    using T = decltype(element);
    constexpr int V = decltype(vector)::value;
    constexpr bool PIXELS = decltype(pixels)::value;
    Params<T> params{norm_params<T>(p, args.by, args.input), cut, moments, static_cast<float*>(args.statistics), false};
    params.norm.out = strided<T>(args.output);
    const dim3 blocks(static_cast<unsigned>(cut.blocks)), block(static_cast<unsigned>(cut.threads()));
    const auto run = [&](auto kernel, int64_t packets, int columns) {
      const size_t scratch = sizeof(float) * (5 * columns + (PIXELS ? cut.threads() * V : 0));
      return launch(kernel, blocks, block, packets * sizeof(Packet<T, V>) + scratch, stream, params);
    };
    const int threads = cut.threads(), columns = PIXELS ? cut.tx * V : cut.ty;
    if (cut.fused)
      return run(forward_kernel<T, V, PIXELS, Stage::fused>, packets_of<T, V, Stage::fused>(cut, threads), columns);
    if (p.norm != Norm::none) {
      const cudaError_t error =
          run(forward_kernel<T, V, PIXELS, Stage::measure>, packets_of<T, V, Stage::measure>(cut, threads), columns);
      if (error != cudaSuccess) return error;
      if (norm_merges(p, cut)) {
        const dim3 groups(static_cast<unsigned>(norm_ceil_div(p.statistics(), kNormThreads / 32)));
        const cudaError_t another = launch(merge_kernel<T>, groups, dim3(kNormThreads), 0, stream, params);
        if (another != cudaSuccess) return another;
        params.merged = true;
      }
    }
    return run(forward_kernel<T, V, PIXELS, Stage::apply>, packets_of<T, V, Stage::apply>(cut, threads), columns);
  });
}

}  // namespace film::cuda
