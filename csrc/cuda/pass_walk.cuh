// How both passes go over memory: in planes a warp has a piece of one channel, in rows a block has some channels of
// some positions. Either way V elements at a time, a packet of 16 bytes, or one where nothing is aligned.
#pragma once

#include <launch.cuh>

#include "activate.cuh"
#include "elements.cuh"
#include "pass_kernels.h"
#include "sizes.cuh"

namespace film::cuda {

constexpr int kPassThreads = 256, kPassWarps = kPassThreads / 32;

template <class T>
struct PassParams {
  const T *grad, *raw;
  T* out;  // y, or dz
  PassSums sums;
  T *bias_copy, *beta_copy;
  PassCut cut;
  int64_t n, positions;
  int k;
  int lanes;  // rows: threads beside each other along the channels, a power of two up to 32
  Factor<T> bias, gamma, beta;
  float gamma_offset, lower_slope;
  int activation;
  bool post;

  __device__ __forceinline__ float scale(int64_t sample, int channel) const {
    return gamma.at(sample, channel) + gamma_offset;
  }

  // By whoever has the first piece of a channel of a sample.
  __device__ __forceinline__ void copy(int64_t sample, int channel, float of_bias, float of_beta) const {
    if (bias_copy != nullptr && sample == 0) bias_copy[channel] = from_float<T>(of_bias);
    if (beta_copy != nullptr) beta_copy[sample * k + channel] = from_float<T>(of_beta);
  }
};

template <class T, int V>
__device__ __forceinline__ void load(const T* at, float (&values)[V]) {
  if constexpr (V == 1) {
    values[0] = to_float(*at);
  } else {
    unpack<T>(*reinterpret_cast<const uint4*>(at), values);
  }
}

template <class T, int V>
__device__ __forceinline__ void store(T* at, const float (&values)[V]) {
  if constexpr (V == 1) {
    *at = from_float<T>(values[0]);
  } else {
    *reinterpret_cast<uint4*>(at) = pack<T>(values);
  }
}

template <int V>
struct Count {
  static constexpr int value = V;
};

// The piece of a plane that a warp has; beyond the last one `plane` is at least N * K.
struct PlanePiece {
  int64_t plane, split, begin, end;

  template <class T>
  __device__ explicit PlanePiece(const PassParams<T>& p) {
    const int64_t piece = static_cast<int64_t>(blockIdx.x) * kPassWarps + threadIdx.x / 32;
    plane = piece / p.cut.splits, split = piece - plane * p.cut.splits;
    begin = plane * p.positions + split * p.cut.length;
    end = plane * p.positions + min(p.positions, (split + 1) * p.cut.length);
  }

  // body(Count, offset) for every element: packets, and what is before and after them one by one.
  template <int V, class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    const int lane = threadIdx.x % 32;
    const int64_t first = min(ceil_div(begin, V) * V, end), last = max(end / V * V, first);
    for (int64_t i = begin + lane; i < first; i += 32) body(Count<1>(), i);
    for (int64_t i = first + lane * V; i < last; i += 32 * V) body(Count<V>(), i);
    for (int64_t i = last + lane; i < end; i += 32) body(Count<1>(), i);
  }
};

// The V channels and the positions that a thread has in rows.
template <int V>
struct RowPiece {
  int64_t n, split, begin, end;
  int k, lane, row, rows;  // the first channel; the thread's place in the block, and how many rows it has

  template <class T>
  __device__ explicit RowPiece(const PassParams<T>& p) {
    const int64_t chunks = ceil_div(p.k, p.lanes * V), unit = blockIdx.x / chunks;
    n = unit / p.cut.splits, split = unit - n * p.cut.splits;
    begin = split * p.cut.length, end = min(p.positions, begin + p.cut.length);
    lane = threadIdx.x % p.lanes, row = threadIdx.x / p.lanes, rows = kPassThreads / p.lanes;
    k = (static_cast<int>(blockIdx.x - unit * chunks) * p.lanes + lane) * V;
  }
};

// Threads along the channels.
template <int V>
int pass_lanes(int64_t channels) {
  int lanes = 1;
  while (lanes < 32 && lanes * V < channels) lanes *= 2;
  return lanes;
}

inline bool is_aligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

template <class T>
PassParams<T> pass_params(const Pass& p, const PassCut& cut, const void* grad, const void* raw, void* out,
                          const PassSums& sums, const PassCopies& copies) {
  return {static_cast<const T*>(grad),
          static_cast<const T*>(raw),
          static_cast<T*>(out),
          sums,
          static_cast<T*>(copies.bias),
          static_cast<T*>(copies.beta),
          cut,
          p.batch,
          p.positions,
          static_cast<int>(p.channels),
          1,
          factor_of<T>(p.bias, 0.f),
          factor_of<T>(p.gamma, 1.f),
          factor_of<T>(p.beta, 0.f),
          static_cast<float>(p.gamma_offset),
          static_cast<float>(p.lower_slope),
          static_cast<int>(p.activation),
          p.post};
}

// Starts planes<T, V> or rows<T, V> of a Kernels, whichever serves.
template <template <class, int> class Kernels, class T>
cudaError_t start_pass(const Pass& p, PassParams<T> params, cudaStream_t stream) {
  const auto start = [&](auto count) {
    constexpr int V = decltype(count)::value;
    params.lanes = pass_lanes<V>(p.channels);
    const int64_t blocks = p.rows ? p.batch * params.cut.splits * ceil_div(p.channels, params.lanes * V)
                                  : ceil_div(p.batch * p.channels * params.cut.splits, kPassWarps);
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const dim3 grid(static_cast<unsigned>(blocks)), block(kPassThreads);
    if (!p.rows) return launch(Kernels<T, V>::planes(), grid, block, 0, stream, params);
    return launch(Kernels<T, V>::rows(), grid, block, Kernels<T, V>::kSharedBytes, stream, params);
  };
  const bool aligned = is_aligned(params.grad) && is_aligned(params.raw) && is_aligned(params.out);
  if (aligned && (!p.rows || p.channels % kPacket<T> == 0)) return start(Count<kPacket<T>>());
  return start(Count<1>());
}

}  // namespace film::cuda
