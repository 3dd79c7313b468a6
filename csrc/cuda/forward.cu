// y = gamma * act(conv(x, W) + b) + beta, or act(gamma * (conv(x, W) + b) + beta), and the bits, in one pass: a matrix
// product on tensor cores whose rows are output positions of all samples, numbered through, and whose columns are
// output channels. Input and weight are channels_last, (N, H, W, C) and (K, kh, kw, C), and a sum runs over the packets
// of (kh, kw, C): no packet belongs to two kernel taps, since C is a multiple of a packet.
#include "kernels.h"
#include "modulate.cuh"
#include "tile.cuh"

namespace film::cuda::matrix {
namespace {

template <class T>
struct Params {
  Sizes s;
  const T *x, *w;
  T* y;
  uint8_t* bits;
  Modulation<T> modulate;
  int tap_packets, packets;  // of one kernel tap, and of a whole sum
  int64_t positions;         // of all samples
};

struct Place {
  int64_t offset;  // into x, where the patch begins (outside of it, with padding)
  int h, w;        // the same as coordinates
  int n;
};

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) forward_kernel(const Params<T> p) {
  constexpr int V = kPacket<T>;
  const Sizes& s = p.s;
  unsigned char* stages = ptx::shared_memory<unsigned char>();
  Place* places = reinterpret_cast<Place*>(stages + Shape::kStages * Shape::kStageBytes);

  // Indices: blocks that share positions are neighbours.
  const int k_blocks = static_cast<int>(ceil_div(s.k, Shape::kColumns));
  const int64_t first = blockIdx.x / k_blocks * static_cast<int64_t>(Shape::kRows);
  const int k0 = static_cast<int>(blockIdx.x) % k_blocks * Shape::kColumns;
  const int out_positions = s.oh * s.ow;
  for (int row = threadIdx.x; row < Shape::kRows; row += Shape::kThreads) {
    const int64_t n = (first + row) / out_positions;
    const int q = static_cast<int>((first + row) - n * out_positions);
    const bool valid = first + row < p.positions;
    const int h = valid ? q / s.ow * s.sh - s.ph : -(1 << 30), w = q % s.ow * s.sw - s.pw;
    places[row] = {((n * s.h + h) * s.w + w) * s.c, h, w, static_cast<int>(n)};
  }
  __syncthreads();

  const int packet = threadIdx.x % kRowPackets, load_row = threadIdx.x / kRowPackets;
  const auto load_stage = [&](int step) {
    unsigned char* stage = stages + step % Shape::kStages * Shape::kStageBytes;
    const int j = step * kRowPackets + packet;
    const int tap = j / p.tap_packets, c = (j - tap * p.tap_packets) * V;
    const int dh = tap / s.kw * s.dh, dw = tap % s.kw * s.dw;
    const int64_t shift = (static_cast<int64_t>(dh) * s.w + dw) * s.c + c;
#pragma unroll
    for (int row = load_row; row < Shape::kRows; row += Shape::kLoadRows) {
      const Place at = places[row];
      const bool inside = j < p.packets && static_cast<unsigned>(at.h + dh) < static_cast<unsigned>(s.h) &&
                          static_cast<unsigned>(at.w + dw) < static_cast<unsigned>(s.w);
      ptx::cp_async_16(stage + packet_at(row, packet), p.x + (inside ? at.offset + shift : 0), inside);
    }
    stage += Shape::kRows * kRowBytes;
#pragma unroll
    for (int row = load_row; row < Shape::kColumns; row += Shape::kLoadRows) {
      const bool inside = j < p.packets && k0 + row < s.k;
      const int64_t offset = inside ? (static_cast<int64_t>(k0 + row) * p.packets + j) * V : 0;
      ptx::cp_async_16(stage + packet_at(row, packet), p.w + offset, inside);
    }
  };

  // z[p, k] = sum_r patch(x)[p, r] W[k, r]
  typename Shape::Sums sums = {};
  const int steps = static_cast<int>(ceil_div(p.packets, kRowPackets));
  for (int step = 0; step < Shape::kStages - 1; ++step) {
    if (step < steps) load_stage(step);
    ptx::cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<Shape::kStages - 2>();
    __syncthreads();  // this stage has landed for all, and the one before it has been read by all
    if (step + Shape::kStages - 1 < steps) load_stage(step + Shape::kStages - 1);
    ptx::cp_async_commit();
    Shape::template multiply_stage<T>(stages + step % Shape::kStages * Shape::kStageBytes, sums);
  }
  ptx::cp_async_wait<0>();

  // Bias, activation, FiLM and bits, eight channels of a position at a time: a byte of bits, and whole packets of y.
  float* spread = reinterpret_cast<float*>(stages);
  Shape::spread(sums, spread);
  constexpr int kEights = Shape::kColumns / 8;
  const int eight = threadIdx.x % kEights, k = k0 + eight * 8;
  const int count = min(8, s.k - k);
  if (count <= 0) return;
  float bias[8], scale[8], shift[8];
  const int64_t bit_row = (s.k + 7) / 8;
  int sample = -1;
#pragma unroll
  for (int i = 0; i < 8; ++i) bias[i] = i < count ? p.modulate.bias.at(0, k + i) : 0.f;
  for (int row = threadIdx.x / kEights; row < Shape::kRows; row += Shape::kThreads / kEights) {
    const int64_t position = first + row;
    if (position >= p.positions) break;
    if (places[row].n != sample) {
      sample = places[row].n;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        scale[i] = i < count ? p.modulate.scale(sample, k + i) : 0.f;
        shift[i] = i < count ? p.modulate.beta.at(sample, k + i) : 0.f;
      }
    }
    float values[8];
    read_eight(spread + row * Shape::kPitch + eight * 8, values);
    unsigned byte = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      bool upper;
      values[i] = p.modulate(values[i] + bias[i], scale[i], shift[i], upper);
      byte |= (i < count && upper ? 1u : 0u) << i;
    }
    write_eight(p.y + position * s.k + k, values, count);
    if (p.bits != nullptr) p.bits[position * bit_row + k / 8] = static_cast<uint8_t>(byte);
  }
}

template <class T, class Shape>
cudaError_t start(const Params<T>& params, cudaStream_t stream) {
  const int64_t blocks = ceil_div(params.positions, Shape::kRows) * ceil_div(params.s.k, Shape::kColumns);
  const size_t shared = Shape::kStages * Shape::kStageBytes + Shape::kRows * sizeof(Place);
  return launch(forward_kernel<T, Shape>, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), shared, stream,
                params);
}

}  // namespace

cudaError_t forward(const Problem& p, const ForwardArgs& args, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    Params<T> params;
    params.s = sizes_of(p);
    params.x = static_cast<const T*>(args.input.data);
    params.w = static_cast<const T*>(args.weight.data);
    params.y = static_cast<T*>(args.output.data);
    params.bits = args.bits;
    params.modulate = modulation_of<T>(p, args.bias, args.gamma, args.beta);
    params.tap_packets = params.s.c / kPacket<T>;
    params.packets = params.s.kh * params.s.kw * params.tap_packets;
    params.positions = p.positions();
    switch (shape_for(params.positions, params.s.k)) {
      case Shapes::large:
        return start<T, Large>(params, stream);
      case Shapes::middle:
        return start<T, Middle>(params, stream);
      default:
        return start<T, Small>(params, stream);
    }
  });
}

}  // namespace film::cuda::matrix
