// dx = conv_transpose(gamma * u, W) with u = g * slope(bits): a matrix product on tensor cores whose rows are input
// positions and whose columns are input channels. gamma * u is formed on the way from memory into shared memory and
// never stored. The gradient is channels_last, (N, OH, OW, K), the weight comes as (C, kh, kw, K), and a sum runs over
// the packets of (kh, kw, K).
//
// Of the kernel taps, an input position meets those with kh * dilation = h + padding (mod stride). Positions with one
// remainder meet the same taps, and a block has positions of one remainder only, so that no product is with nothing.
#include "kernels.h"
#include "modulate.cuh"
#include "tile.cuh"

namespace film::cuda::matrix {
namespace {

// Along one axis: the positions with remainder a are a, a + stride, ...; their taps are first, first + step, ...; from
// one of the taps to the next the output position goes down by `back`, from `out` for the first position of them.
struct Class {
  int first, step, taps, back, out;
};

Class class_of(const Axis& axis, int64_t remainder) {
  int64_t gcd = axis.stride;
  for (int64_t other = axis.dilation; other != 0;) {
    const int64_t rest = gcd % other;
    gcd = other, other = rest;
  }
  const int64_t step = axis.stride / gcd;
  for (int64_t first = 0; first < std::min(axis.kernel, step); ++first) {
    const int64_t distance = remainder + axis.pad - first * axis.dilation;
    if (distance % axis.stride == 0)
      return {static_cast<int>(first), static_cast<int>(step),
              static_cast<int>((axis.kernel - first + step - 1) / step),
              static_cast<int>(axis.dilation * step / axis.stride), static_cast<int>(distance / axis.stride)};
  }
  return {0, 1, 0, 0, 0};
}

template <class T>
struct Params {
  Sizes s;
  const T *g, *w;
  T* dx;
  const uint8_t* bits;
  Factor<T> gamma;  // neighbouring channels are neighbours in memory, at multiples of 16 bytes
  float gamma_offset;
  Branch branch;
  Class class_h, class_w;
  int a, b;                  // the remainders
  int rows_h, rows_w;        // positions of these remainders in one sample
  int tap_packets, packets;  // of one tap, and of a whole sum
  int64_t positions;         // of these remainders in all samples
};

struct Place {
  int64_t position;  // in g and the bits, of the first tap (outside of them at the borders)
  int oh, ow;        // the same as coordinates
  int n;
};

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) grad_input_kernel(const Params<T> p) {
  constexpr int V = kPacket<T>;
  constexpr int kLoads = Shape::kRows / Shape::kLoadRows;  // packets of A that a thread carries
  const Sizes& s = p.s;
  unsigned char* stages = ptx::shared_memory<unsigned char>();
  Place* places = reinterpret_cast<Place*>(stages + Shape::kStages * Shape::kStageBytes);

  // Indices.
  const int c_blocks = static_cast<int>(ceil_div(s.c, Shape::kColumns));
  const int64_t first = blockIdx.x / c_blocks * static_cast<int64_t>(Shape::kRows);
  const int c0 = static_cast<int>(blockIdx.x) % c_blocks * Shape::kColumns;
  const int per_sample = p.rows_h * p.rows_w;
  for (int row = threadIdx.x; row < Shape::kRows; row += Shape::kThreads) {
    const int64_t n = (first + row) / per_sample;
    const int q = static_cast<int>((first + row) - n * per_sample);
    const bool valid = first + row < p.positions;
    const int oh = valid ? q / p.rows_w + p.class_h.out : -(1 << 30), ow = q % p.rows_w + p.class_w.out;
    places[row] = {(n * s.oh + oh) * s.ow + ow, oh, ow, static_cast<int>(n)};
  }
  __syncthreads();

  const int packet = threadIdx.x % kRowPackets, load_row = threadIdx.x / kRowPackets;
  const int64_t bit_row = (s.k + 7) / 8;
  // What this thread carries of a stage of A from memory to shared memory: packets of g, their bits and gamma's
  // packets.
  uint4 g[kLoads], gamma[kLoads];
  uint8_t bits[kLoads];
  unsigned inside = 0;  // a bit for each

  const auto load_stage = [&](int step) {
    unsigned char* stage = stages + step % 2 * Shape::kStageBytes;
    const int j = step * kRowPackets + packet;
    const int tap = j / p.tap_packets, k = (j - tap * p.tap_packets) * V;
    const int tap_h = p.class_w.taps == 0 ? 0 : tap / p.class_w.taps, tap_w = tap - tap_h * p.class_w.taps;
    const int down = tap_h * p.class_h.back, left = tap_w * p.class_w.back;
    inside = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const Place at = places[load_row + i * Shape::kLoadRows];
      const bool here = j < p.packets && static_cast<unsigned>(at.oh - down) < static_cast<unsigned>(s.oh) &&
                        static_cast<unsigned>(at.ow - left) < static_cast<unsigned>(s.ow);
      const int64_t position = here ? at.position - static_cast<int64_t>(down) * s.ow - left : 0;
      inside |= (here ? 1u : 0u) << i;
      g[i] = read_packet(p.g + position * s.k + k, here);
      gamma[i] = read_packet(p.gamma.data + at.n * p.gamma.n + k, here && p.gamma.data != nullptr);
      bits[i] = here && p.bits != nullptr ? __ldg(p.bits + position * bit_row + k / 8) : 0xff;
    }
    const int kh = p.class_h.first + tap_h * p.class_h.step, kw = p.class_w.first + tap_w * p.class_w.step;
    const int64_t shift = (static_cast<int64_t>(kh) * s.kw + kw) * s.k + k;
    stage += Shape::kRows * kRowBytes;
#pragma unroll
    for (int row = load_row; row < Shape::kColumns; row += Shape::kLoadRows) {
      const bool valid = j < p.packets && c0 + row < s.c;
      const int64_t offset = valid ? static_cast<int64_t>(c0 + row) * s.kh * s.kw * s.k + shift : 0;
      ptx::cp_async_16(stage + packet_at(row, packet), p.w + offset, valid);
    }
    ptx::cp_async_commit();
  };

  // dz = (gamma + gamma_offset) * u, into shared memory. Where there is no output position it is 0, whatever gamma is.
  const auto store_stage = [&](int step) {
    unsigned char* stage = stages + step % 2 * Shape::kStageBytes;
    const int k = (step * kRowPackets + packet) % p.tap_packets * V;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float values[V], scales[V];
      unpack<T>(g[i], values);
      unpack<T>(gamma[i], scales);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float scale = (p.gamma.data == nullptr ? 1.f : scales[v]) + p.gamma_offset;
        const float dz = scale * p.branch(values[v], bits[i] >> ((k + v) & 7) & 1);
        values[v] = inside >> i & 1 ? dz : 0.f;
      }
      ptx::store_shared_16(stage + packet_at(load_row + i * Shape::kLoadRows, packet), pack<T>(values));
    }
  };

  // dx[p, c] = sum over (tap, k) of dz[p - tap, k] W[k, tap, c]
  typename Shape::Sums sums = {};
  const int steps = static_cast<int>(ceil_div(p.packets, kRowPackets));
  if (steps > 0) {
    load_stage(0);
    store_stage(0);
  }
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // this stage has landed for all, and the other one has been read by all
    if (step + 1 < steps) load_stage(step + 1);
    Shape::template multiply_stage<T>(stages + step % 2 * Shape::kStageBytes, sums);
    if (step + 1 < steps) store_stage(step + 1);
  }

  float* spread = reinterpret_cast<float*>(stages);
  Shape::spread(sums, spread);
  constexpr int kEights = Shape::kColumns / 8;
  const int eight = threadIdx.x % kEights, c = c0 + eight * 8;
  const int count = min(8, s.c - c);
  if (count <= 0) return;
  for (int row = threadIdx.x / kEights; row < Shape::kRows; row += Shape::kThreads / kEights) {
    if (first + row >= p.positions) break;
    const Place at = places[row];
    const int h = (at.oh - p.class_h.out) * s.sh + p.a, w = (at.ow - p.class_w.out) * s.sw + p.b;
    float values[8];
    read_eight(spread + row * Shape::kPitch + eight * 8, values);
    write_eight(p.dx + ((static_cast<int64_t>(at.n) * s.h + h) * s.w + w) * s.c + c, values, count);
  }
}

// Whether tiles of 128 x 128 give a large GPU work everywhere.
bool fills_wide_tiles(int64_t positions, int channels) {
  constexpr int64_t kBlocks = 200;
  return channels > 64 && ceil_div(positions, 128) * ceil_div(channels, 128) >= kBlocks;
}

template <class T, class Shape>
cudaError_t start(const Params<T>& params, cudaStream_t stream) {
  const int64_t blocks = ceil_div(params.positions, Shape::kRows) * ceil_div(params.s.c, Shape::kColumns);
  const size_t shared = Shape::kStages * Shape::kStageBytes + Shape::kRows * sizeof(Place);
  return launch(grad_input_kernel<T, Shape>, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), shared, stream,
                params);
}

}  // namespace

cudaError_t grad_input(const Problem& p, const GradInputArgs& args, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    // Two stages are enough, since what is formed for the next one waits in registers; the sums need room for three.
    using Wide = Tile<128, 128, 2, 4, 3>;
    using Narrow = Tile<64, 64, 2, 2, 2>;
    Params<T> params;
    params.s = sizes_of(p);
    params.g = static_cast<const T*>(args.grad.data);
    params.w = static_cast<const T*>(args.weight.data);
    params.dx = static_cast<T*>(args.grad_input.data);
    params.bits = args.bits;
    params.gamma = factor_of<T>(args.gamma, 1.f);
    params.gamma_offset = static_cast<float>(p.gamma_offset);
    params.branch = branch_of(p);
    params.tap_packets = params.s.k / kPacket<T>;
    for (int64_t a = 0; a < std::min(p.h.stride, p.h.in); ++a) {
      for (int64_t b = 0; b < std::min(p.w.stride, p.w.in); ++b) {
        params.a = static_cast<int>(a), params.b = static_cast<int>(b);
        params.class_h = class_of(p.h, a), params.class_w = class_of(p.w, b);
        params.rows_h = static_cast<int>(ceil_div(p.h.in - a, p.h.stride));
        params.rows_w = static_cast<int>(ceil_div(p.w.in - b, p.w.stride));
        params.packets = params.class_h.taps * params.class_w.taps * params.tap_packets;
        params.positions = p.batch * params.rows_h * params.rows_w;
        const bool wide = fills_wide_tiles(params.positions, params.s.c);
        const cudaError_t error = wide ? start<T, Wide>(params, stream) : start<T, Narrow>(params, stream);
        if (error != cudaSuccess) return error;
      }
    }
    return cudaSuccess;
  });
}

}  // namespace film::cuda::matrix
