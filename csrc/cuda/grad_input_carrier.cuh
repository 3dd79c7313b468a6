// What a thread of grad_input's blocks brings to shared memory: dz = (gamma + gamma_offset) * u, formed on the way, and
// the weight. As in convolve.cuh, the main loop divides nothing and compares no coordinates: each thread carries the
// tap of its packets along from step to step, and which taps of a window are inside is a word of bits a row.
#pragma once

#include "convolve.cuh"
#include "modulate.cuh"

namespace film::cuda::matrix {

// Along one axis: the positions with remainder a are a, a + stride, ...; their taps are first, first + step, ...; from
// one of the taps to the next the output position goes down by `back`, from `out` for the first position of them.
struct Class {
  int first, step, taps, back, out;
};

// Where a tap is, or how much further a packet's is after a step or a carry.
struct Tap {
  int position;  // of g and the bits, from the row's first one on
  int weight;    // kh * KW + kw
};

template <class T>
struct InputGradient {
  Sizes s;
  const T *g, *w;
  T* dx;
  const uint8_t* bits;
  Factor<T> gamma;  // neighbouring channels are neighbours in memory, at multiples of 16 bytes
  float gamma_offset;
  Branch branch;
  Class class_h, class_w;
  Sizes window;                                          // of the taps of these remainders, as `taps_inside` takes them
  int a, b;                                              // the remainders
  int rows_h, rows_w;                                    // positions of these remainders in one sample
  int tap_packets, packets;                              // of one tap, and of a whole sum
  int64_t positions;                                     // of these remainders in all samples
  int step_packets, step_columns, step_rows, step_taps;  // from a packet to that of the next step
  Tap step, next_tap, next_row;                          // the same, and what a carry adds to it
  int window_steps;                                      // in which no thread leaves its window of taps
};

// A row of the tile.
struct Row {
  unsigned position;  // of g and the bits at the first tap, from the block's origin on, modulo 2^32
  int oh, ow;         // the same as coordinates
  int n;
  unsigned taps;  // which of the first window are inside
};

// What a thread brings to shared memory in a step: a packet of dz for each of its rows, through registers, and packets
// of the weight. KEEPS says that u is g or 0, and that `scaled` serves the offset.
template <class T, class Shape, bool KEEPS>
struct Carrier {
  static constexpr int V = kPacket<T>;
  static constexpr int kRows = Shape::kRows / Shape::kLoadRows, kHalf = kRows / 2;

  const InputGradient<T>& p;
  const Row* rows;          // of the first one that it brings
  const T *g, *w;           // from the block's origin and from the first channel that it brings
  const uint8_t* bits;      // at the block's origin
  const T* gamma;           // of the first row's sample
  bool one_sample;          // whether all its rows are of it
  int to;                   // in a stage
  unsigned taps[kRows];     // which of the window are inside
  int channels;             // that there are
  int packet, row, column;  // of the taps, in the next step
  int tap;                  // of the window
  Tap at;
  // From loading to storing:
  uint4 packets[kHalf];   // of g
  unsigned upper[kHalf];  // their bits
  unsigned bit;           // of the window
  uint4 scale;            // gamma of the first row's sample
  int k;

  __device__ Carrier(const InputGradient<T>& params, const Row* block_rows, int64_t origin, int c0) : p(params) {
    const int first = threadIdx.x % kRowPackets, load_row = threadIdx.x / kRowPackets;
    rows = block_rows + load_row;
    bits = p.bits == nullptr ? nullptr : p.bits + origin * ((p.s.k + 7) / 8);
    gamma = p.gamma.data == nullptr ? nullptr : p.gamma.data + rows->n * p.gamma.n;
    one_sample = true;
    to = held(packet_at(load_row, first));
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Row& own = rows[i * Shape::kLoadRows];
      taps[i] = own.taps;
      one_sample = one_sample && own.n == rows->n;
    }
#pragma unroll
    for (int i = 0; i < kHalf; ++i) packets[i] = make_uint4(0, 0, 0, 0);
    channels = held((p.s.c - c0 - load_row + Shape::kLoadRows - 1) / Shape::kLoadRows);
    tap = first / p.tap_packets, packet = first - tap * p.tap_packets;
    g = p.g + origin * p.s.k, w = p.w + (c0 + load_row) * (static_cast<int64_t>(p.s.kh) * p.s.kw * p.s.k);
    row = tap / p.class_w.taps, column = tap - row * p.class_w.taps;
    at.position = -(row * p.class_h.back * p.s.ow + column * p.class_w.back);
    at.weight = (p.class_h.first + row * p.class_h.step) * p.s.kw + p.class_w.first + column * p.class_w.step;
    float ones[V];
#pragma unroll
    for (int v = 0; v < V; ++v) ones[v] = 1.f;
    scale = pack<T>(ones);
  }

  __device__ __forceinline__ uint4 gamma_of(int i) const {
    const T* of_row = p.gamma.data + rows[i * Shape::kLoadRows].n * p.gamma.n;
    return __ldg(reinterpret_cast<const uint4*>(of_row + k));
  }

  // Asks for what a step takes beside g: packets of the weight, and gamma.
  __device__ __forceinline__ void load_factors(unsigned char* stage) {
    bit = 1u << tap, k = packet * V;
    const int inside = row < p.class_h.taps ? channels : 0;  // after the last packet there is nothing
    const int64_t pitch = static_cast<int64_t>(p.s.kh) * p.s.kw * p.s.k * Shape::kLoadRows;
    const T* const weight = ptx::further(ptx::further(w, packet, 16), at.weight, p.s.k * static_cast<int>(sizeof(T)));
    stage += Shape::kRows * kRowBytes + to;
#pragma unroll
    for (int i = 0; i < Shape::kColumns / Shape::kLoadRows; ++i)
      ptx::cp_async_16(stage + i * Shape::kLoadRows * kRowBytes, weight + i * pitch, i < inside);
    ptx::cp_async_commit();
    if (gamma != nullptr && one_sample) scale = __ldg(reinterpret_cast<const uint4*>(gamma + k));
  }

  // Asks for g and its bits, for half of the rows: there is no room for more at a time.
  template <int HALF>
  __device__ __forceinline__ void load() {
    const T* packet_at = ptx::further(g, packet, 16);
    const uint8_t* bits_at = ptx::further(bits, k / 8, 1);
    const unsigned bit_kept = bits == nullptr ? 0 : bit;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const unsigned inside = taps[HALF * kHalf + i];
      const unsigned first = rows[(HALF * kHalf + i) * Shape::kLoadRows].position;
      const int position = static_cast<int>(first + static_cast<unsigned>(at.position));
      const int pixel = p.s.k * static_cast<int>(sizeof(T)), bit_row = (p.s.k + 7) / 8;
      if ((inside & bit) != 0)
        packets[i] = __ldg(reinterpret_cast<const uint4*>(ptx::further(packet_at, position, pixel)));
      upper[i] = (inside & bit) != 0 ? 0xff : 0;
      if ((inside & bit_kept) != 0) upper[i] = __ldg(ptx::further(bits_at, position, bit_row));
    }
  }

  // On to the next step.
  __device__ __forceinline__ void advance() {
    packet += p.step_packets, column += p.step_columns, row += p.step_rows, tap += p.step_taps;
    at.position += p.step.position, at.weight += p.step.weight;
    if (packet >= p.tap_packets) {
      packet -= p.tap_packets, ++column, ++tap;
      at.position += p.next_tap.position, at.weight += p.next_tap.weight;
    }
    if (column >= p.class_w.taps) {
      column -= p.class_w.taps, ++row;
      at.position += p.next_row.position, at.weight += p.next_row.weight;
    }
  }

  // The next window begins at the tap of the next step.
  __device__ __forceinline__ void next_window() {
    tap = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Row& own = rows[i * Shape::kLoadRows];
      taps[i] = taps_inside(p.window, own.oh, own.ow, row, column);
    }
  }

  // dz = (gamma + gamma_offset) * u of that half. Where there is no position it is 0, whatever gamma is.
  template <int HALF>
  __device__ __forceinline__ void store(unsigned char* stage) const {
    if (one_sample || gamma == nullptr) {
      store<HALF>(stage, [&](int) { return scale; });
    } else {
      store<HALF>(stage, [&](int i) { return gamma_of(i); });
    }
  }

  template <int HALF, class Scale>
  __device__ __forceinline__ void store(unsigned char* stage, const Scale& scale_of) const {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int of_all = HALF * kHalf + i;
      const uint4 dz = product(packets[i], upper[i] >> (k & 7 & -V), scale_of(of_all));
      // Two stores, of which a thread does one, take less than to choose between four registers and zeros.
      unsigned char* const place = stage + to + of_all * Shape::kLoadRows * kRowBytes;
      if ((taps[of_all] & bit) != 0)
        ptx::store_shared_16(place, dz);
      else
        ptx::store_shared_16(place, make_uint4(0, 0, 0, 0));
    }
  }

  __device__ __forceinline__ uint4 product(const uint4& packet_of_g, unsigned bits_of_g, const uint4& gammas) const {
    if constexpr (KEEPS) {
      return scaled<T>(where_set<T>(packet_of_g, bits_of_g), gammas, p.gamma_offset);
    } else {
      float values[V], scales[V];
      unpack<T>(packet_of_g, values), unpack<T>(gammas, scales);
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = (scales[v] + p.gamma_offset) * p.branch(values[v], bits_of_g >> v & 1);
      return pack<T>(values);
    }
  }
};

}  // namespace film::cuda::matrix
