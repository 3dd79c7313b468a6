// Threads that share a channel, or a position's statistics: where one of them walks, and sums over all.
#pragma once

#include "norm_cut.h"
#include "norm_packets.cuh"

namespace film::cuda {

// Blocks that a multiprocessor is to have at once, at the least, which bounds the registers of a thread. The assembler
// needs more of them for the newest cards.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kNormBlocks = 2;
#else
constexpr int kNormBlocks = 3;
#endif

// Where a thread's packets are: `count` of them, at positions `step` apart; all of one channel or of the same V.
struct Place {
  int n = 0, c = 0, chunk = 0;
  int64_t position = 0;
  int step = 0, count = 0;
  int length = 0;    // positions of the chunk
  int group = 0;     // planes: of all groups
  int slab = 0;      // pixels: the block's first channel
  int x = 0, y = 0;  // which of the threads it is
  bool active = false;
};

template <int V, bool PIXELS, class T>
__device__ __forceinline__ Place place_of(const NormParams<T>& p, const NormCut& cut) {
  Place at;
  const unsigned block = blockIdx.x, per_group = static_cast<unsigned>(cut.per_group);
  const unsigned chunks = static_cast<unsigned>(cut.chunks);
  at.x = static_cast<int>(threadIdx.x) % cut.tx, at.y = static_cast<int>(threadIdx.x) / cut.tx;
  int before;
  if constexpr (PIXELS) {
    at.chunk = static_cast<int>(block % chunks);
    at.n = static_cast<int>(block / chunks / per_group);
    at.slab = static_cast<int>(block / chunks % per_group) * cut.tx * V;
    at.c = at.slab + at.x * V;
    at.active = at.y < cut.ty && at.c < p.channels;
    before = at.y, at.step = cut.ty;
  } else {
    const bool batch = p.norm == Norm::batch;
    const unsigned lines = batch ? p.batch : p.each, unit = block % per_group * cut.ty + at.y;
    at.group = static_cast<int>(block / per_group);
    at.active = at.y < cut.ty && unit < lines * chunks;
    const int line = at.active ? static_cast<int>(unit / chunks) : 0;
    at.chunk = at.active ? static_cast<int>(unit % chunks) : 0;
    at.n = batch ? line : at.group / p.groups;
    at.c = batch ? at.group : at.group % p.groups * p.each + line;
    before = at.x * V, at.step = cut.tx * V;
  }
  const int64_t first = at.chunk * cut.size;
  at.length = static_cast<int>(min(cut.size, p.positions - first));
  at.position = first + before;
  at.count = at.active && before < at.length ? (at.length - before + at.step - 1) / at.step : 0;
  return at;
}

// The sum over `tx` neighbours, a power of two within a warp, for all of them.
__device__ __forceinline__ float sum_of_neighbours(float v, int tx) {
  for (int apart = tx / 2; apart > 0; apart /= 2) v += __shfl_xor_sync(~0u, v, apart);
  return v;
}

// The sum over the `ty` rows of a block's threads, of W numbers of each column, for all of them. `scratch` has W floats
// for each thread of the block, which all come here.
template <int W>
__device__ __forceinline__ void sum_of_rows(float (&v)[W], float* scratch, int tx, int ty) {
  const int thread = static_cast<int>(threadIdx.x), y = thread / tx, pitch = tx * W;
  float* mine = scratch + thread * W;
#pragma unroll
  for (int e = 0; e < W; ++e) mine[e] = v[e];
  int half = 1;
  while (half < ty) half *= 2;
  for (half /= 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half && y + half < ty) {
#pragma unroll
      for (int e = 0; e < W; ++e) mine[e] += mine[half * pitch + e];
    }
  }
  __syncthreads();
#pragma unroll
  for (int e = 0; e < W; ++e) v[e] = scratch[thread % tx * W + e];
  __syncthreads();
}

// Over the threads that share something: rows, or with ROWS false neighbours, with W = 1.
template <bool ROWS, int W>
__device__ __forceinline__ void sum_of_team(float (&v)[W], float* scratch, int tx, int ty) {
  if constexpr (ROWS)
    sum_of_rows(v, scratch, tx, ty);
  else
    v[0] = sum_of_neighbours(v[0], tx);
}

// A packet's numbers, added to W sums: each to its own, or all, by halves, to one.
template <int W, int V>
__device__ __forceinline__ void add_packet(float (&sums)[W], float (&values)[V]) {
  if constexpr (W == V) {
#pragma unroll
    for (int e = 0; e < V; ++e) sums[e] += values[e];
  } else {
#pragma unroll
    for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
      for (int e = 0; e < half; ++e) values[e] += values[e + half];
    }
    sums[0] += values[0];
  }
}

// How many numbers there were, their mean, and the sum of the squares of their distances from it.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  // Those of both together (Chan, Golub and LeVeque, 1979). Nothing cancels, whatever the mean is.
  __device__ __forceinline__ void add(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, step = other.mean - mean;
    // other.count / total, to 14 digits: a division of doubles is a call, around which registers would be spilled.
    const double near = 1 / static_cast<float>(total), share = other.count * (near * (2 - total * near));
    mean += step * share;
    squares += other.squares + step * step * (count * share);
    count = total;
  }
};

// What chunks of lines found: a number near the mean, what the mean has beyond it, and squares; at line * pitch +
// chunk.
struct MomentsOfLines {
  const float *near, *rest, *squares;
  int lines, chunks;
  int64_t pitch, size, positions;

  // All together, by a whole warp; for its first lane.
  __device__ __forceinline__ Moments merged() const {
    Moments all;
    for (int i = threadIdx.x % 32; i < lines * chunks; i += 32) {
      const int64_t chunk = i % chunks, at = i / chunks * pitch + chunk;
      all.add({static_cast<double>(min(size, positions - chunk * size)), static_cast<double>(near[at]) + rest[at],
               squares[at]});
    }
    for (int apart = 16; apart > 0; apart /= 2)
      all.add({__shfl_down_sync(~0u, all.count, apart), __shfl_down_sync(~0u, all.mean, apart),
               __shfl_down_sync(~0u, all.squares, apart)});
    return all;
  }
};

// The two passes over what a thread has that find moments of its team's numbers: `each(body)` calls body with every
// packet. `length` is how many numbers each of W sums has. The mean is near + rest, for around a large one the digits
// of one float do not suffice.
template <bool ROWS, int W, int V, class Each>
__device__ __forceinline__ void moments_of(const Each& each, float length, float* scratch, int tx, int ty,
                                           float (&near)[W], float (&rest)[W], float (&squares)[W]) {
  const float share = 1 / length;
#pragma unroll
  for (int e = 0; e < W; ++e) near[e] = rest[e] = squares[e] = 0;
  each([&](float (&values)[V]) { add_packet(near, values); });
  sum_of_team<ROWS>(near, scratch, tx, ty);
#pragma unroll
  for (int e = 0; e < W; ++e) near[e] *= share;
  each([&](float (&values)[V]) {
    float squared[V];
#pragma unroll
    for (int e = 0; e < V; ++e) {
      values[e] -= near[W == V ? e : 0];
      squared[e] = values[e] * values[e];
    }
    add_packet(rest, values);
    add_packet(squares, squared);
  });
  sum_of_team<ROWS>(rest, scratch, tx, ty);
  sum_of_team<ROWS>(squares, scratch, tx, ty);
#pragma unroll
  for (int e = 0; e < W; ++e) {
    const float off = rest[e] * share;
    const double around = squares[e] - static_cast<double>(rest[e]) * off;  // infinite squares stay so
    rest[e] = off;
    squares[e] = around < 0 ? 0 : static_cast<float>(around);  // and NaN stays NaN
  }
}

// Calls launch(T(), V, PIXELS) with constants, for a dtype, elements moved at once and a layout.
template <class Launch>
cudaError_t with_kinds(DType dtype, bool packets, bool pixels, const Launch& launch) {
  return with_type(dtype, [&](auto element) {
    using T = decltype(element);
    const auto with_layout = [&](auto vector) {
      return pixels ? launch(element, vector, std::true_type()) : launch(element, vector, std::false_type());
    };
    return packets ? with_layout(std::integral_constant<int, kNormPacket>())
                   : with_layout(std::integral_constant<int, 1>());
  });
}

}  // namespace film::cuda
