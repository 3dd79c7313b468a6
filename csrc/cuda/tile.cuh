// The matrix product of a block: tiles of 128-byte rows in shared memory, ldmatrix, mma, and the way out of registers.
//
// A tile row holds the summed products of one row of A or B, 16-byte packets of them; the packet p of row r lies at
// p ^ (r % 8), so that eight lanes that read or write one packet of eight rows, or eight packets of one row, meet eight
// different groups of banks.
#pragma once

#include <launch.cuh>
#include <ptx.cuh>

#include "elements.cuh"
#include "sizes.cuh"

namespace film::cuda {

constexpr int kRowBytes = 128;
constexpr int kRowPackets = 8;

__device__ __forceinline__ int packet_at(int row, int packet) { return row * kRowBytes + ((packet ^ (row & 7)) << 4); }

// d += a b on tensor cores; float32 is rounded to tf32 here, where the card would cut digits off.
__device__ __forceinline__ void multiply(__half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_f16(d, a, b);
}
__device__ __forceinline__ void multiply(__nv_bfloat16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_bf16(d, a, b);
}
__device__ __forceinline__ void multiply(float, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ptx::mma_tf32(d, a, b);
}

template <class T, int N>
__device__ __forceinline__ void round_operand(uint32_t (&r)[N]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < N; ++i) r[i] = ptx::to_tf32(__uint_as_float(r[i]));
  }
}

// How a block shares out a tile of ROWS positions and COLUMNS channels.
template <int ROWS, int COLUMNS, int WARP_ROWS, int WARP_COLUMNS, int STAGES>
struct Tile {
  static constexpr int kRows = ROWS, kColumns = COLUMNS, kStages = STAGES;
  static constexpr int kThreads = 32 * WARP_ROWS * WARP_COLUMNS;
  static constexpr int kStageBytes = (ROWS + COLUMNS) * kRowBytes;
  static constexpr int kM = ROWS / WARP_ROWS / 16, kN = COLUMNS / WARP_COLUMNS / 8;  // products of 16 x 8 a warp
  static constexpr int kPitch = COLUMNS + 8;  // of the sums in shared memory; 8 more, so that rows meet other banks
  static constexpr int kLoadRows = kThreads / kRowPackets;  // rows that the block loads at once, a packet a thread
  static_assert(ROWS * kPitch * 4 <= STAGES * kStageBytes, "the sums take the place of the stages");

  using Sums = float[kM][kN][4];

  static __device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / WARP_COLUMNS * (kM * 16); }
  static __device__ __forceinline__ int warp_column() { return threadIdx.x / 32 % WARP_COLUMNS * (kN * 8); }

  // Where a thread begins to read A and B in a stage. What it reads of each 32 bytes of a row differs in two bits.
  struct Reads {
    int a, b;

    __device__ Reads() {
      const int lane = threadIdx.x % 32;
      a = packet_at(warp_row() + lane % 16, lane / 16);
      b = ROWS * kRowBytes + packet_at(warp_column() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }
  };

  // sums += A B^T over one stage, or over its 32 bytes of a row from FIRST on to LAST: ROWS rows of A, then COLUMNS
  // rows of B.
  template <class T, int FIRST = 0, int LAST = kRowPackets / 2>
  static __device__ __forceinline__ void multiply_stage(const unsigned char* stage, const Reads& reads, Sums& sums) {
#pragma unroll
    for (int step = FIRST; step < LAST; ++step) {
      uint32_t a[kM][4], b[kN / 2][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        ptx::ldmatrix_x4(a[i], stage + (reads.a ^ step * 32) + i * 16 * kRowBytes);
        round_operand<T>(a[i]);
      }
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) {
        ptx::ldmatrix_x4(b[j], stage + (reads.b ^ step * 32) + j * 16 * kRowBytes);
        round_operand<T>(b[j]);
      }
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          multiply(T(), sums[i][j], a[i], pair);
        }
      }
    }
  }

  // The sums of all warps into shared memory, row by row; ends with all of them written.
  static __device__ __forceinline__ void spread(const Sums& sums, float* shared) {
    const int lane = threadIdx.x % 32;
    __syncthreads();  // the stages have been read
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        float* at = shared + (warp_row() + i * 16 + lane / 4) * kPitch + warp_column() + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = make_float2(sums[i][j][0], sums[i][j][1]);
        *reinterpret_cast<float2*>(at + 8 * kPitch) = make_float2(sums[i][j][2], sums[i][j][3]);
      }
    }
    __syncthreads();
  }
};

// Sums of eight channels of a row, as `spread` left them.
__device__ __forceinline__ void read_eight(const float* at, float (&values)[8]) {
  const float4 low = *reinterpret_cast<const float4*>(at), high = *reinterpret_cast<const float4*>(at + 4);
  values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
  values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
}

// `count` (a multiple of the packet) of eight values at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void write_eight(T* at, const float (&values)[8], int count) {
  constexpr int kSize = kPacket<T>;
#pragma unroll
  for (int first = 0; first < 8; first += kSize) {
    float part[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) part[i] = values[first + i];
    if (first < count) *reinterpret_cast<uint4*>(at + first) = pack<T>(part);
  }
}

template <class T>
__device__ __forceinline__ uint4 read_packet(const T* at, bool valid) {
  return valid ? __ldg(reinterpret_cast<const uint4*>(at)) : make_uint4(0, 0, 0, 0);
}

}  // namespace film::cuda
