// The operands of the weight gradient's matrix product. Both lie in shared memory as they come, a position a row: their
// rows are the summed axis, and so 16-bit operands are read transposed, and 32-bit ones an element at a time.
#pragma once

#include "tile.cuh"

namespace film::cuda::matrix {

constexpr int kThreads = 128, kSide = 64;  // a block has four warps, and a tile 64 channels or 64 products

template <class T>
constexpr int kSlicePositions = 128 / sizeof(T);  // summed in one stage: 64, or 32 of float32
template <class T>
constexpr int kPackets = kSide / kPacket<T>;  // in a row of a tile: 8, or 16 of float32
template <class T>
constexpr int kTileBytes = kSlicePositions<T> * kSide * sizeof(T);

// Where a packet of a tile lies: a row of 64 elements is 128 bytes, or of float32 two halves of so many. Rows meet
// different banks by their last three bits where eight of them are read at once, and by the last two of float32, of
// which four rows of eight neighbours are read.
template <class T>
__device__ __forceinline__ int operand_at(int row, int packet) {
  if constexpr (sizeof(T) == 2) {
    return packet_at(row, packet);
  } else {
    return (packet / kRowPackets * kSlicePositions<T> + row) * kRowBytes +
           ((packet % kRowPackets ^ (row % 4 * 2)) << 4);
  }
}

// Two neighbours, from an even element on.
template <class T>
__device__ __forceinline__ float2 read_pair(const T* at) {
  struct alignas(2 * sizeof(T)) Pair {
    T first, second;
  };
  const Pair pair = *reinterpret_cast<const Pair*>(at);
  return make_float2(to_float(pair.first), to_float(pair.second));
}

// Where a thread begins to read operands of a tile, from a multiple of 32 columns on: those that are A (rows of it are
// the tile's columns) or those that are B. Matrices come in the order of the operand: A's second is 8 columns further,
// B's 8 positions.
template <class T>
__device__ __forceinline__ int operands_of(int first, bool b) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    const int matrix = lane / 8, along = b ? matrix / 2 : matrix % 2, deep = b ? matrix % 2 : matrix / 2;
    return operand_at<T>(deep * 8 + lane % 8, first / 8 + along);
  } else {
    return operand_at<T>(lane % 4, first / 4 + lane / 16) + lane / 4 % 4 * 4;
  }
}

// Of 16 columns, `index` * 16 further, the operand (A) or both operands of 8 columns (B), summed over the positions of
// one step: 16, or 8 of float32.
template <class T>
__device__ __forceinline__ void read_operand(uint32_t (&r)[4], const unsigned char* tile, int operands, int step,
                                             int index, bool b) {
  if constexpr (sizeof(T) == 2) {
    ptx::ldmatrix_x4_trans(r, tile + (operands ^ index * 32) + step * 16 * kRowBytes);
  } else {
#pragma unroll
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int along = b ? matrix / 2 : matrix % 2, deep = b ? matrix % 2 : matrix / 2;
      const int at = (operands ^ (index * 64 + along * 32)) + (step * 8 + deep * 4) * kRowBytes;
      r[matrix] = ptx::to_tf32(*reinterpret_cast<const float*>(tile + at));
    }
  }
}

}  // namespace film::cuda::matrix
