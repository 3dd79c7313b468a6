// The convolution on tensor cores that forward and recompute have in common: a matrix product whose rows are output
// positions and whose columns are output channels. Input and weight are channels_last, (N, H, W, C) and (K, kh, kw, C),
// and a sum runs over the packets of (kh, kw, C): no packet belongs to two kernel taps, since C is a multiple of one.
//
// The main loop divides nothing and compares no coordinates: each thread carries the tap of its packets along from step
// to step, and which taps of a window of 32 are inside the input is a word of bits a row.
#pragma once

#include "tile.cuh"

namespace film::cuda::matrix {

template <class T>
struct Convolution {
  Sizes s;
  const T *x, *w;
  int tap_packets, packets;  // of one kernel tap, and of a whole sum
  int64_t unit, unit_tiles;  // positions that are cut into tiles together, all of them or a sample's, and their tiles
  int step_packets, step_columns, step_rows, step_taps;  // from a packet to that of the next step
  int64_t step, next_tap, next_row;                      // the same in bytes of x, and what a carry adds to it
  int window_steps;                                      // in which no thread leaves its window of taps
};

// A row of the tile.
struct Place {
  int64_t offset;  // into x, in bytes, where the patch begins (outside of it, with padding)
  int h, w;        // the same as coordinates
  int n;
  unsigned taps;  // which of the first window are inside the input
};

// What a block works out. Blocks that share positions are neighbours.
template <class Shape>
struct Part {
  int64_t unit, tile;  // of the unit
  int64_t first, end;  // positions of all samples, numbered through
  int k0;

  template <class T>
  __device__ explicit Part(const Convolution<T>& c) {
    const int k_blocks = static_cast<int>(ceil_div(c.s.k, Shape::kColumns));
    const int64_t row_block = blockIdx.x / k_blocks;
    k0 = (static_cast<int>(blockIdx.x) - static_cast<int>(row_block) * k_blocks) * Shape::kColumns;
    unit = row_block / c.unit_tiles, tile = row_block - unit * c.unit_tiles;
    first = unit * c.unit + tile * Shape::kRows;
    end = min(first + Shape::kRows, (unit + 1) * c.unit);
  }
};

// Which of 32 taps, from (row, column) of the kernel on, are inside the input where a patch begins at (h, w).
__device__ __forceinline__ unsigned taps_inside(const Sizes& s, int h, int w, int row, int column) {
  unsigned inside = 0;
#pragma unroll 1
  for (unsigned bit = 1; bit != 0 && row < s.kh; bit <<= 1) {
    if (static_cast<unsigned>(h + row * s.dh) < static_cast<unsigned>(s.h) &&
        static_cast<unsigned>(w + column * s.dw) < static_cast<unsigned>(s.w))
      inside |= bit;
    if (++column == s.kw) column = 0, ++row;
  }
  return inside;
}

// A value that stays in its register: what is worked out of the thread's index is otherwise worked out at every step.
__device__ __forceinline__ int held(int value) { return __shfl_sync(0xffffffffu, value, threadIdx.x % 32); }

// The packets that a thread brings to shared memory, one of each of its rows a step.
template <class T, class Shape>
struct Loader {
  static constexpr int kPatches = Shape::kRows / Shape::kLoadRows, kChannels = Shape::kColumns / Shape::kLoadRows;

  const Convolution<T>& c;
  const Place* places;          // of the first row that it loads
  int to;                       // in a stage
  uintptr_t patches[kPatches];  // addresses; they need not be in x where nothing is read
  unsigned taps[kPatches];      // which of the window are inside
  int packet, row, column;      // of the kernel, in this step
  int tap;                      // of the window
  int64_t offset;               // of the packet, in bytes
  uintptr_t channels;           // address of the first channel's packet
  int channels_inside;          // rows of channels that there are

  __device__ Loader(const Convolution<T>& of, const Place* block_places, int k0) : c(of) {
    const int first = threadIdx.x % kRowPackets, load_row = threadIdx.x / kRowPackets;
    places = block_places + load_row;
    to = held(packet_at(load_row, first));
    tap = first / c.tap_packets, packet = first - tap * c.tap_packets;
    row = tap / c.s.kw, column = tap - row * c.s.kw;
    const int64_t pixel = static_cast<int64_t>(c.s.c) * sizeof(T);
    offset = (static_cast<int64_t>(row * c.s.dh) * c.s.w + column * c.s.dw) * pixel + packet * 16;
#pragma unroll
    for (int i = 0; i < kPatches; ++i) {
      patches[i] = reinterpret_cast<uintptr_t>(c.x) + places[i * Shape::kLoadRows].offset;
      taps[i] = places[i * Shape::kLoadRows].taps;
    }
    channels = reinterpret_cast<uintptr_t>(c.w) + (static_cast<int64_t>(k0 + load_row) * c.packets + first) * 16;
    channels_inside = held((c.s.k - k0 - load_row + Shape::kLoadRows - 1) / Shape::kLoadRows);
  }

  // Those of one step, and on to the next.
  __device__ __forceinline__ void operator()(unsigned char* stage) {
    const unsigned bit = 1u << tap;
#pragma unroll
    for (int i = 0; i < kPatches; ++i)
      ptx::cp_async_16(stage + to + i * Shape::kLoadRows * kRowBytes, reinterpret_cast<const T*>(patches[i] + offset),
                       (taps[i] & bit) != 0);
    const int inside = row < c.s.kh ? channels_inside : 0;  // after the last packet there is nothing
    const int64_t pitch = static_cast<int64_t>(c.packets) * (16 * Shape::kLoadRows);
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      ptx::cp_async_16(stage + to + (Shape::kRows + i * Shape::kLoadRows) * kRowBytes,
                       reinterpret_cast<const T*>(channels + i * pitch), i < inside);
    channels += kRowBytes;
    packet += c.step_packets, column += c.step_columns, row += c.step_rows, tap += c.step_taps, offset += c.step;
    if (packet >= c.tap_packets) packet -= c.tap_packets, ++column, ++tap, offset += c.next_tap;
    if (column >= c.s.kw) column -= c.s.kw, ++row, offset += c.next_row;
  }

  // The next window begins at the tap of the next step.
  __device__ __forceinline__ void next_window() {
    tap = 0;
#pragma unroll
    for (int i = 0; i < kPatches; ++i) {
      const Place& at = places[i * Shape::kLoadRows];
      taps[i] = taps_inside(c.s, at.h, at.w, row, column);
    }
  }
};

// The block's shared memory: stages, whose place the sums take, and after them the rows' places.
template <class Shape>
constexpr size_t kConvolveBytes = Shape::kStages * Shape::kStageBytes + Shape::kRows * sizeof(Place);

template <class Shape>
__device__ __forceinline__ Place* places_of() {
  return reinterpret_cast<Place*>(ptx::shared_memory<unsigned char>() + Shape::kStages * Shape::kStageBytes);
}

// Leaves z[p, k] = sum_r patch(x)[p, r] W[k, r] in shared memory as float32, a row of Shape::kPitch a position.
template <class T, class Shape>
__device__ __forceinline__ void convolve(const Convolution<T>& c, const Part<Shape>& part) {
  const Sizes& s = c.s;
  unsigned char* stages = ptx::shared_memory<unsigned char>();
  Place* places = places_of<Shape>();
  const int out_positions = s.oh * s.ow;
  for (int row = threadIdx.x; row < Shape::kRows; row += Shape::kThreads) {
    const int64_t position = part.first + row, n = position / out_positions;
    const int q = static_cast<int>(position - n * out_positions), out_row = q / s.ow;
    const bool valid = position < part.end;
    const int h = valid ? out_row * s.sh - s.ph : -(1 << 30), w = (q - out_row * s.ow) * s.sw - s.pw;
    const int64_t offset = ((n * s.h + h) * s.w + w) * s.c * static_cast<int64_t>(sizeof(T));
    places[row] = {offset, h, w, static_cast<int>(n), taps_inside(s, h, w, 0, 0)};
  }
  __syncthreads();

  Loader<T, Shape> load(c, places, part.k0);
  typename Shape::Reads reads;
  reads.a = held(reads.a), reads.b = held(reads.b);
  typename Shape::Sums sums = {};
  const int steps = static_cast<int>(ceil_div(c.packets, kRowPackets));
  int filled = 0, read = 0;  // stages
  const auto next = [](int stage) { return stage + 1 < Shape::kStages ? stage + 1 : 0; };
  for (int step = 0; step < Shape::kStages - 1; ++step) {
    if (step < steps) load(stages + filled * Shape::kStageBytes);
    filled = next(filled);
    ptx::cp_async_commit();
  }
  int step = 0;
  for (int window = c.window_steps; step < steps; window += c.window_steps) {
    const int until = min(steps, window - (Shape::kStages - 1));
    for (; step < until; ++step) {
      ptx::cp_async_wait<Shape::kStages - 2>();
      __syncthreads();  // this stage has landed for all, and the one before it has been read by all
      if (step + Shape::kStages - 1 < steps) load(stages + filled * Shape::kStageBytes);
      filled = next(filled);
      ptx::cp_async_commit();
      Shape::template multiply_stage<T>(stages + read * Shape::kStageBytes, reads, sums);
      read = next(read);
    }
    if (step < steps) load.next_window();
  }
  ptx::cp_async_wait<0>();
  Shape::spread(sums, reinterpret_cast<float*>(stages));
}

template <class T>
Convolution<T> convolution_of(const Problem& p, const void* x, const void* w) {
  Convolution<T> c;
  const Sizes s = c.s = sizes_of(p);
  c.x = static_cast<const T*>(x), c.w = static_cast<const T*>(w);
  c.tap_packets = s.c / kPacket<T>;
  c.packets = s.kh * s.kw * c.tap_packets;
  c.unit = p.positions(), c.unit_tiles = 0;  // by the shape of tiles
  c.step_packets = kRowPackets % c.tap_packets, c.step_taps = kRowPackets / c.tap_packets;
  c.step_columns = c.step_taps % s.kw, c.step_rows = c.step_taps / s.kw;
  const int64_t pixel = int64_t{s.c} * sizeof(T), column = s.dw * pixel, row = int64_t{s.dh} * s.w * pixel;
  c.step = c.step_packets * 16 + c.step_columns * column + c.step_rows * row;
  c.next_tap = column - pixel, c.next_row = row - s.kw * column;
  // A window of 32 taps that begins with a part of one lasts for 31 whole ones.
  const int64_t whole = int64_t{31} * c.tap_packets / kRowPackets, steps = ceil_div(c.packets, kRowPackets);
  c.window_steps = static_cast<int>(s.kh * int64_t{s.kw} <= 32 ? steps + 3 : whole);
  return c;
}

// The fewer results a warp has, the more it reads of shared memory for one: 64 x 64 in large tiles.
using LargeTile = Tile<128, 128, 2, 2, 3>;
using MiddleTile = Tile<128, 64, 2, 2, 3>;
using SmallTile = Tile<64, 64, 2, 2, 4>;

// Calls body(Shape()) with the shape of tiles for which the busiest of a device's multiprocessors is done first.
template <class Body>
cudaError_t with_shape(int64_t units, int64_t unit, int64_t channels, const Body& body) {
  int device, processors;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return cudaGetLastError();
  // Shared memory is the bound: a step writes a stage, and each warp reads its rows of it. A block that is alone on its
  // multiprocessor has nobody to work while it waits.
  const auto time = [&](auto shape) {
    using Shape = decltype(shape);
    constexpr int kRead = Shape::kThreads / 32 * (Shape::kM * 16 + Shape::kN * 8) * kRowBytes;
    const int64_t blocks = units * ceil_div(unit, Shape::kRows) * ceil_div(channels, Shape::kColumns);
    const int64_t most = ceil_div(blocks, processors);
    return static_cast<double>(most * (Shape::kStageBytes + kRead)) / (most > 1 ? 1 : 0.6);
  };
  const double large = time(LargeTile()), middle = time(MiddleTile()), small = time(SmallTile());
  if (large <= middle && large <= small) return body(LargeTile());
  return middle <= small ? body(MiddleTile()) : body(SmallTile());
}

// Starts a kernel of the blocks that there are for the parameters' convolution, a Convolution<T> named `c`.
template <class Shape, class P>
cudaError_t start_convolution(void (*kernel)(P), P params, size_t shared_bytes, int64_t units, cudaStream_t stream) {
  auto& c = params.c;
  c.unit_tiles = ceil_div(c.unit, Shape::kRows);
  const int64_t blocks = units * c.unit_tiles * ceil_div(c.s.k, Shape::kColumns);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), shared_bytes, stream, params);
}

}  // namespace film::cuda::matrix
