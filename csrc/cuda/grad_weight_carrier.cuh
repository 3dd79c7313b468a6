// What a thread of grad_weight's blocks brings to shared memory: of every few positions a packet of u, formed on the
// way, and one of each tile of patches, always of the same channels and tap. It walks from stage to stage without a
// division; where a sample begins is worked out once.
#pragma once

#include "convolve.cuh"
#include "grad_weight_tile.cuh"
#include "kernels.h"
#include "modulate.cuh"

namespace film::cuda::matrix {

template <class T>
struct WeightGradient {
  Sizes s;
  const T *g, *x, *w;
  const uint8_t* bits;
  Factor<T> gamma;
  float gamma_offset;
  Branch branch;
  Partials partials;
  Cut cut;
  int tap_packets, packets;  // of one kernel tap, and of all products
  int r_blocks, r_programs, k_blocks;
  int unit_positions, sample_stages;        // of a unit, and stages of a sample
  int stage_columns, stage_rows, row_ends;  // from a patch to that of the next stage, and columns of a row
};

// TILES of 64 products each. KEEPS says that u is g or 0.
template <class T, int TILES, bool KEEPS>
struct Carrier {
  static constexpr int V = kPacket<T>;
  static constexpr int kRows = kSlicePositions<T> * kPackets<T> / kThreads;  // positions of a stage: 4
  static constexpr int kApart = kThreads / kPackets<T>;                      // from one to the next

  const WeightGradient<T>& p;
  const int2* begins;             // places of its positions in the first stage of a sample
  int to;                         // in a tile
  int first_bit;                  // of its packets in a byte
  int q, stage;                   // in the sample, of the next stage
  int2 places[kRows];             // of tap (0, 0) of the patches, without padding: columns x, rows y
  const T* g;                     // of the first position
  const uint8_t* bits;            // the same
  const T* x[TILES];              // of the sample
  int down[TILES], right[TILES];  // to the taps
  int channels_end, bits_end;     // positions where there are its channels of g, and bits
  // From loading to storing:
  uint4 packets[kRows];   // of g
  unsigned upper[kRows];  // their bits

  __device__ Carrier(const WeightGradient<T>& params, const int2* block_begins, int64_t first_unit, int k0, int r_block)
      : p(params) {
    const Sizes& s = p.s;
    const int packet = threadIdx.x % kPackets<T>, row = threadIdx.x / kPackets<T>, k = k0 + packet * V;
    begins = block_begins + row;
    to = held(operand_at<T>(row, packet)), first_bit = k % 8 & -V;
    const int64_t n = first_unit / p.cut.sample_units;
    const int unit = static_cast<int>(first_unit - n * p.cut.sample_units);
    q = unit * p.unit_positions + row;
    stage = unit * (p.unit_positions / kSlicePositions<T>);
    channels_end = k < s.k ? s.oh * s.ow : 0, bits_end = p.bits == nullptr ? 0 : channels_end;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      places[i] = place_of(s, q + i * kApart);
      packets[i] = make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const int j = (r_block * TILES + t) * kPackets<T> + packet, tap = j / p.tap_packets, tap_row = tap / s.kw;
      x[t] = p.x + n * s.h * s.w * s.c + (j - tap * p.tap_packets) * V;
      down[t] = j < p.packets ? tap_row * s.dh - s.ph : 1 << 30;  // outside, where there is no such product
      right[t] = (tap - tap_row * s.kw) * s.dw - s.pw;
    }
    const int64_t position = n * s.oh * s.ow + q;
    g = p.g + position * s.k + k;
    bits = p.bits == nullptr ? nullptr : p.bits + position * bit_row() + k / 8;
  }

  __device__ __forceinline__ int bit_row() const { return (p.s.k + 7) / 8; }

  // Where the patch of a sample's position begins, but for the padding.
  static __device__ __forceinline__ int2 place_of(const Sizes& s, int position) {
    const int row = position / s.ow;
    return make_int2((position - row * s.ow) * s.sw, row * s.sh);
  }

  // Asks for one stage.
  __device__ __forceinline__ void load(unsigned char* patches) {
    const Sizes& s = p.s;
    const int64_t apart = static_cast<int64_t>(s.k) * kApart, bits_apart = static_cast<int64_t>(bit_row()) * kApart;
    const int out_positions = s.oh * s.ow, pixel = s.c * static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int position = q + i * kApart;
      if (!KEEPS) packets[i] = make_uint4(0, 0, 0, 0);  // as `where_set` makes them
      if (position < channels_end) packets[i] = __ldg(reinterpret_cast<const uint4*>(g + i * apart));
      upper[i] = position < channels_end ? 0xff : 0;
      if (position < bits_end) upper[i] = __ldg(bits + i * bits_apart);
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        const int row = places[i].y + down[t], column = places[i].x + right[t];
        const bool inside = position < out_positions && static_cast<unsigned>(row) < static_cast<unsigned>(s.h) &&
                            static_cast<unsigned>(column) < static_cast<unsigned>(s.w);
        ptx::cp_async_16(patches + t * kTileBytes<T> + to + i * kApart * kRowBytes,
                         ptx::further(x[t], static_cast<int>(static_cast<unsigned>(row) * s.w + column), pixel),
                         inside);
      }
    }
    ptx::cp_async_commit();
  }

  // On to the next stage.
  __device__ __forceinline__ void advance() {
    const Sizes& s = p.s;
    if (++stage < p.sample_stages) {
      move(kSlicePositions<T>);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        places[i].x += p.stage_columns, places[i].y += p.stage_rows;
        if (places[i].x >= p.row_ends) places[i].x -= p.row_ends, places[i].y += s.sh;
      }
    } else {
      const int first = static_cast<int>(threadIdx.x) / kPackets<T>;
      stage = 0;
      move(s.oh * s.ow - q + first);
      q = first;
#pragma unroll
      for (int i = 0; i < kRows; ++i) places[i] = begins[i * kApart];
#pragma unroll
      for (int t = 0; t < TILES; ++t) x[t] += static_cast<int64_t>(s.h) * s.w * s.c;
    }
  }

  __device__ __forceinline__ void move(int positions) {
    q += positions;
    g = ptx::further(g, positions, p.s.k * static_cast<int>(sizeof(T)));
    bits = ptx::further(bits, positions, bit_row());
  }

  // u of what was asked for.
  __device__ __forceinline__ void store(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const unsigned set = upper[i] >> first_bit;
      uint4 u;
      if constexpr (KEEPS) {
        u = where_set<T>(packets[i], set);
      } else {
        float values[V];
        unpack<T>(packets[i], values);
#pragma unroll
        for (int v = 0; v < V; ++v) values[v] = p.branch(values[v], set >> v & 1);
        u = pack<T>(values);
      }
      ptx::store_shared_16(tile + to + i * kApart * kRowBytes, u);
    }
  }
};

}  // namespace film::cuda::matrix
