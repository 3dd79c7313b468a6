// y where statistics are of groups of channels of a sample, or of channels. Where one block has all of a group it holds
// it in shared memory and x is read once. Otherwise blocks write what they find for each channel of their chunk, and a
// second kernel puts that together, in order, and has y. Means and squares around them are found by two passes over
// what is at hand, and are joined without a sum of squares that could cancel.
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

template <class T, int V, bool PIXELS, Stage STAGE>
__global__ void __launch_bounds__(STAGE == Stage::fused ? kNormFusedThreads : kNormThreads, 1)
    forward_kernel(const Params<T> p) {
  constexpr int W = PIXELS ? V : 1;
  const NormParams<T>& norm = p.norm;
  const NormCut& cut = p.cut;
  const Place at = place_of<V, PIXELS>(norm, cut);
  const int threads = static_cast<int>(blockDim.x), columns = PIXELS ? cut.tx * V : cut.ty;

  // Shared memory: packets that are held, what chunks found, statistics, scratch.
  auto* held = ptx::shared_memory<Packet<T, V>>();
  float* found = reinterpret_cast<float*>(held + (STAGE == Stage::fused ? cut.steps * threads : 0));
  float* scratch = found + 5 * columns;

  const T* x = norm.x.at(at.n, at.c, at.position);
  const int64_t step = at.step * norm.x.p;
  if constexpr (STAGE == Stage::fused) {
#pragma unroll 4
    for (int j = 0; j < at.count; ++j) held[j * threads + threadIdx.x] = load<T, V>(x + j * step);
  }
  const auto packet = [&](int j) {
    if constexpr (STAGE == Stage::fused)
      return held[j * threads + threadIdx.x];
    else
      return load<T, V>(x + j * step);
  };

  if constexpr (STAGE != Stage::apply) {
    float near[W], rest[W], squares[W];
    moments_of<PIXELS, W, V>(
        [&](const auto& body) {
#pragma unroll 4
          for (int j = 0; j < at.count; ++j) {
            float values[V];
            widen<T, V>(packet(j), values);
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

  PacketFactors<V, PIXELS> by;
  by.read(norm, at.n, at.c);
  T* y = norm.out.at(at.n, at.c, at.position);
  const int64_t out_step = at.step * norm.out.p;
  Packet<T, V> next{};  // on its way while the one before it is worked on
  if (at.count > 0) next = packet(0);
#pragma unroll 1
  for (int j = 0; j < at.count; ++j) {
    float values[V];
    widen<T, V>(next, values);
    if (j + 1 < at.count) next = packet(j + 1);
    modulate(norm, by, of, values);
    store<T, V>(y + j * out_step, values);
  }
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
    const size_t scratch = sizeof(float) * (PIXELS ? 5 * cut.tx * V + cut.threads() * V : 5 * cut.ty);
    if (cut.fused)
      return launch(forward_kernel<T, V, PIXELS, Stage::fused>, blocks, block, cut.held_bytes(sizeof(T)) + scratch,
                    stream, params);
    if (p.norm != Norm::none) {
      const cudaError_t error =
          launch(forward_kernel<T, V, PIXELS, Stage::measure>, blocks, block, scratch, stream, params);
      if (error != cudaSuccess) return error;
      if (norm_merges(p, cut)) {
        const dim3 groups(static_cast<unsigned>(norm_ceil_div(p.statistics(), kNormThreads / 32)));
        const cudaError_t another = launch(merge_kernel<T>, groups, dim3(kNormThreads), 0, stream, params);
        if (another != cudaSuccess) return another;
        params.merged = true;
      }
    }
    return launch(forward_kernel<T, V, PIXELS, Stage::apply>, blocks, block, scratch, stream, params);
  });
}

}  // namespace film::cuda
