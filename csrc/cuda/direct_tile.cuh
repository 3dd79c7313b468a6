// What the direct kernels share: tiles of positions, the strip of the input under a tile, and how gradients are read
// and results written.
#pragma once

#include <algorithm>
#include <launch.cuh>
#include <ptx.cuh>
#include <type_traits>

#include "elements.cuh"
#include "kernels.h"
#include "modulate.cuh"
#include "sizes.cuh"

namespace film::cuda::direct {

constexpr int kWarp = 32;
constexpr int kChannels = 8;      // output channels that are worked on together: one byte of bits
constexpr int kPositions = 4;     // positions of a thread in forward and grad_input
constexpr int kMostWarps = 4;     // of a block there
constexpr int kManyBlocks = 512;  // a large card has work; below that, blocks are made smaller
constexpr int64_t kSharedBytes[] = {48 * 1024,
                                    99 * 1024};  // wanted, so that several blocks share a processor; the most

template <int n>
using Int = std::integral_constant<int, n>;

__host__ __device__ constexpr int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Division without a division; exact while value * by < 2^31, as it is for what counts elements of shared memory.
struct Divisor {
  uint32_t reciprocal;
  int by;

  __device__ __forceinline__ int quotient(int value) const {
    return static_cast<int>((static_cast<uint64_t>(value) * reciprocal) >> 31);
  }
};

inline Divisor divisor_of(int by) { return {static_cast<uint32_t>(ceil_div(int64_t{1} << 31, by)), by}; }

// A plane of positions cut into tiles of rows x columns; the last ones reach over the edge.
struct Tiles {
  int rows, columns, along_h, along_w;
  Divisor column;  // position q of a tile is in row q / columns

  __host__ __device__ int size() const { return rows * columns; }
  __host__ __device__ int64_t count() const { return int64_t{along_h} * along_w; }
};

// Tiles of at most `positions`, whole rows where they are short, all of about the same size.
inline Tiles tiles_of(int h, int w, int positions) {
  const int rows = std::min(h, std::max(1, positions / std::min(w, 64)));
  const int columns = std::min(w, positions / rows);
  const auto along_h = static_cast<int>(ceil_div(h, rows)), along_w = static_cast<int>(ceil_div(w, columns));
  const auto even_rows = static_cast<int>(ceil_div(h, along_h)), even_columns = static_cast<int>(ceil_div(w, along_w));
  return {even_rows, even_columns, along_h, along_w, divisor_of(even_columns)};
}

// A rectangle of kernel taps.
struct Box {
  int h, w, rows, columns;
};

// The smallest that holds taps first .. last, numbered row by row.
__host__ __device__ inline Box box_of(int first, int last, int kw) {
  const int h = first / kw, rows = last / kw - h + 1;
  return rows > 1 ? Box{h, 0, rows, kw} : Box{h, first % kw, 1, last - first + 1};
}

// The input that a box of taps needs for a tile of output positions, in shared memory as float32: plane by plane, row
// by row, and in a row first the columns 0, stride, 2 stride, ..., then those of the next phase, so that neighbouring
// positions are neighbours whatever the stride.
struct Strip {
  int rows, columns;      // of the input
  int plane, row, phase;  // pitches
  bool channels_fastest;  // order in which it is read
  Divisor inner, middle, stride;

  int64_t elements(const Sizes& s) const { return int64_t{s.c} * rows * row; }

  // Where position (row, column) of the tile meets the box's first tap, and what is added for another.
  __device__ __forceinline__ int position(const Sizes& s, int h, int w) const { return h * s.sh * row + w; }
  __device__ __forceinline__ int tap(const Sizes& s, int h, int w, int c) const {
    const int column = w * s.dw;
    return c * plane + h * s.dh * row + column % s.sw * phase + column / s.sw;
  }
};

// `elements` may be too many for 32 bits where a strip cannot be: then it is not used.
inline Strip strip_of(const Sizes& s, const View& input, const Tiles& tiles, const Box& box, int64_t& elements) {
  const int64_t rows = int64_t{tiles.rows - 1} * s.sh + int64_t{box.rows - 1} * s.dh + 1;
  const int64_t columns = int64_t{tiles.columns - 1} * s.sw + int64_t{box.columns - 1} * s.dw + 1;
  const int64_t phase = ceil_div(columns, s.sw), row = phase * std::min<int64_t>(s.sw, columns);
  elements = rows * row * s.c;
  if (rows > kSharedBytes[1] || row > kSharedBytes[1] || elements > kSharedBytes[1]) {
    elements = kSharedBytes[1];
    return {};
  }
  const bool channels_fastest = s.c > 1 && input.c < input.w;
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  return {narrow(rows),
          narrow(columns),
          narrow(rows * row),
          narrow(row),
          narrow(phase),
          channels_fastest,
          divisor_of(channels_fastest ? s.c : narrow(columns)),
          divisor_of(narrow(channels_fastest ? columns : rows)),
          divisor_of(s.sw)};
}

// Fills the strip, whose first element is input (h0, w0), with zeros outside the input.
template <class T>
__device__ __forceinline__ void load_strip(float* shared, const Strip& strip, const Sizes& s, const View& input,
                                           int64_t n, int h0, int w0) {
  const T* const sample = static_cast<const T*>(input.data) + n * input.n;
  const int count = s.c * strip.rows * strip.columns;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int outer = strip.inner.quotient(i), inside = i - outer * strip.inner.by;
    const int first = strip.middle.quotient(outer), second = outer - first * strip.middle.by;
    const int c = strip.channels_fastest ? inside : first;
    const int row = strip.channels_fastest ? first : second;
    const int column = strip.channels_fastest ? second : inside;
    const int h = h0 + row, w = w0 + column;
    float value = 0.f;
    if (static_cast<unsigned>(h) < static_cast<unsigned>(s.h) && static_cast<unsigned>(w) < static_cast<unsigned>(s.w))
      value = to_float(__ldg(sample + c * input.c + h * input.h + w * input.w));
    const int along = strip.stride.quotient(column);
    shared[c * strip.plane + row * strip.row + (column - along * s.sw) * strip.phase + along] = value;
  }
}

// The incoming gradient, with the bits that turn it into u.
struct Gradient {
  View grad;
  const uint8_t* bits;  // null: always the upper branch
  int64_t bit_row;
  int k, oh, ow;
  bool packets;  // channels k0 .. k0 + 8 lie in whole packets of 16 bytes
  Branch branch;

  // g and u of kChannels channels from k0 at one position; zeros past the last channel.
  template <class T>
  __device__ __forceinline__ void load(int64_t n, int h, int w, int k0, float (&g)[kChannels],
                                       float (&u)[kChannels]) const {
    const T* at = static_cast<const T*>(grad.data) + n * grad.n + h * grad.h + w * grad.w + k0 * grad.c;
    if (packets) {
#pragma unroll
      for (int i = 0; i < kChannels / kPacket<T>; ++i) {
        float values[kPacket<T>];
        unpack<T>(__ldg(reinterpret_cast<const uint4*>(at) + i), values);
#pragma unroll
        for (int j = 0; j < kPacket<T>; ++j) g[i * kPacket<T> + j] = values[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kChannels; ++i, at += grad.c) g[i] = k0 + i < k ? to_float(__ldg(at)) : 0.f;
    }
    const unsigned byte = bits == nullptr ? 0xffu : bits[((n * oh + h) * ow + w) * bit_row + k0 / kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) u[i] = branch(g[i], byte >> i & 1);
  }
};

template <class T>
Gradient gradient_of(const Problem& p, const View& grad, const uint8_t* bits) {
  const auto whole = [](int64_t stride) { return stride % kPacket<T> == 0; };
  const bool packets = grad.c == 1 && p.out_channels % kChannels == 0 && whole(grad.n) && whole(grad.h) &&
                       whole(grad.w) && reinterpret_cast<uintptr_t>(grad.data) % 16 == 0;
  const Sizes s = sizes_of(p);
  return {grad, p.activation == Activation::none ? nullptr : bits, p.bit_row(), s.k, s.oh, s.ow, packets, branch_of(p)};
}

// Floats that lie together in shared memory, at a multiple of as many of them as are moved at once.
template <int count>
__device__ __forceinline__ void load_row(float (&values)[count], const float* row) {
  if constexpr (count % 4 == 0) {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(row + i);
      values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
    }
  } else if constexpr (count == 2) {
    const float2 v = *reinterpret_cast<const float2*>(row);
    values[0] = v.x, values[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = row[i];
  }
}

// Floats of shared memory that store_channels needs for a warp.
template <int count>
constexpr int kStoreStage = kWarp * (count + 1);

// Each lane's `values` to its position, which is at data[offset] (nowhere if negative), channels `stride` apart; the
// first `channels` of them exist. Where channels are neighbours in memory, so are the lanes that write them.
template <class T, int count>
__device__ __forceinline__ void store_channels(T* data, int64_t stride, int64_t offset, const float (&values)[count],
                                               int channels, float* stage) {
  if (stride != 1) {
    T* to = data + offset;
#pragma unroll
    for (int i = 0; i < count; ++i, to += stride)
      if (i < channels && offset >= 0) *to = from_float<T>(values[i]);
    return;
  }
  const int lane = threadIdx.x % kWarp;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < count; ++i) stage[lane * (count + 1) + i] = values[i];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int position = (i * kWarp + lane) / count, channel = (i * kWarp + lane) % count;
    const int64_t to = __shfl_sync(~0u, offset, position);
    if (channel < channels && to >= 0) data[to + channel] = from_float<T>(stage[position * (count + 1) + channel]);
  }
}

}  // namespace film::cuda::direct
