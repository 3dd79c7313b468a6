// dx = conv_transpose(gamma * u, W) with u = g * slope(bits): a matrix product on tensor cores whose rows are input
// positions and whose columns are input channels. gamma * u is formed on the way from memory into shared memory and
// never stored. The gradient is channels_last, (N, OH, OW, K), the weight comes as (C, kh, kw, K), and a sum runs over
// the packets of (kh, kw, K).
//
// Of the kernel taps, an input position meets those with kh * dilation = h + padding (mod stride). Positions with one
// remainder meet the same taps, and a block has positions of one remainder only, so that no product is with nothing.
#include "grad_input_carrier.cuh"
#include "kernels.h"

namespace film::cuda::matrix {
namespace {

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

// On a multiprocessor, by shared memory or by what registers suffice for.
template <class Shape>
constexpr int kBlocks = Shape::kColumns == 128 || Shape::kRows == 128 ? 2 : 3;

template <class T, class Shape, bool KEEPS>
__global__ void __launch_bounds__(Shape::kThreads, kBlocks<Shape>) grad_input_kernel(const InputGradient<T> p) {
  const Sizes& s = p.s;
  unsigned char* stages = ptx::shared_memory<unsigned char>();
  Row* rows = reinterpret_cast<Row*>(stages + Shape::kStages * Shape::kStageBytes);

  // Indices. The block's origin is where its last sample begins: 32 bits are enough from there on.
  const int c_blocks = static_cast<int>(ceil_div(s.c, Shape::kColumns));
  const int64_t first = blockIdx.x / c_blocks * static_cast<int64_t>(Shape::kRows);
  const int c0 = static_cast<int>(blockIdx.x) % c_blocks * Shape::kColumns;
  const int per_sample = p.rows_h * p.rows_w, out_positions = s.oh * s.ow;
  const int64_t last_n = (min(first + Shape::kRows, p.positions) - 1) / per_sample;
  for (int index = threadIdx.x; index < Shape::kRows; index += Shape::kThreads) {
    const bool valid = first + index < p.positions;
    const int64_t n = valid ? (first + index) / per_sample : last_n;
    const int q = static_cast<int>(first + index - n * per_sample);
    const int oh = valid ? q / p.rows_w + p.class_h.out : -(1 << 30), ow = q % p.rows_w + p.class_w.out;
    const int64_t position = (n - last_n) * out_positions + static_cast<int64_t>(oh) * s.ow + ow;
    rows[index] = {static_cast<unsigned>(position), oh, ow, static_cast<int>(n), taps_inside(p.window, oh, ow, 0, 0)};
  }
  __syncthreads();

  // dx[p, c] = sum over (tap, k) of dz[p - tap, k] W[k, tap, c], packets of (tap, k) numbered through
  typename Shape::Sums sums = {};
  const int steps = static_cast<int>(ceil_div(p.packets, kRowPackets));
  if (steps > 0) {
    Carrier<T, Shape, KEEPS> carrier(p, rows, last_n * out_positions, c0);
    typename Shape::Reads reads;
    reads.a = held(reads.a), reads.b = held(reads.b);
    unsigned char *read = stages, *filled = stages + Shape::kStageBytes;
    const auto wait = [] {
      ptx::cp_async_wait<0>();
      __syncthreads();  // this stage has landed for all, and the other one has been read by all
    };
    carrier.load_factors(read);
    carrier.template load<0>();
    carrier.template store<0>(read);
    carrier.template load<1>();
    carrier.template store<1>(read);
    carrier.advance();
    int step = 0;
    for (int window = p.window_steps; step < steps - 1; window += p.window_steps) {
      for (const int until = min(steps, window) - 1; step < until; ++step) {
        wait();
        carrier.load_factors(filled);
        carrier.template load<0>();
        Shape::template multiply_stage<T, 0, kRowPackets / 4>(read, reads, sums);
        carrier.template store<0>(filled);
        carrier.template load<1>();
        carrier.advance();
        Shape::template multiply_stage<T, kRowPackets / 4>(read, reads, sums);
        carrier.template store<1>(filled);
        unsigned char* const next = filled;
        filled = read, read = next;
      }
      if (step < steps - 1) carrier.next_window();
    }
    wait();
    Shape::template multiply_stage<T>(read, reads, sums);
  }

  float* spread = reinterpret_cast<float*>(stages);
  Shape::spread(sums, spread);
  constexpr int kEights = Shape::kColumns / 8;
  const int eight = threadIdx.x % kEights, c = c0 + eight * 8;
  const int count = min(8, s.c - c);
  if (count <= 0) return;
  for (int index = threadIdx.x / kEights; index < Shape::kRows; index += Shape::kThreads / kEights) {
    if (first + index >= p.positions) break;
    const Row own = rows[index];
    const int h = (own.oh - p.class_h.out) * s.sh + p.a, w = (own.ow - p.class_w.out) * s.sw + p.b;
    float values[8];
    read_eight(spread + index * Shape::kPitch + eight * 8, values);
    write_eight(p.dx + ((static_cast<int64_t>(own.n) * s.h + h) * s.w + w) * s.c + c, values, count);
  }
}

// What the positions with remainders (a, b) are.
template <class T>
void set_remainders(InputGradient<T>& params, const Problem& p, int64_t a, int64_t b) {
  const Sizes& s = params.s;
  params.a = static_cast<int>(a), params.b = static_cast<int>(b);
  const Class h = params.class_h = class_of(p.h, a), w = params.class_w = class_of(p.w, b);
  params.rows_h = static_cast<int>(ceil_div(p.h.in - a, p.h.stride));
  params.rows_w = static_cast<int>(ceil_div(p.w.in - b, p.w.stride));
  params.positions = p.batch * params.rows_h * params.rows_w;
  params.packets = h.taps * w.taps * params.tap_packets;
  if (params.packets == 0) return;
  params.window = s;
  params.window.h = s.oh, params.window.w = s.ow;
  params.window.kh = h.taps, params.window.kw = w.taps;
  params.window.dh = -h.back, params.window.dw = -w.back;
  params.step_packets = kRowPackets % params.tap_packets, params.step_taps = kRowPackets / params.tap_packets;
  params.step_columns = params.step_taps % w.taps, params.step_rows = params.step_taps / w.taps;
  const Tap column = {-w.back, w.step}, row = {-h.back * s.ow, h.step * s.kw};
  params.next_tap = column;
  params.next_row = {row.position - w.taps * column.position, row.weight - w.taps * column.weight};
  params.step = {params.step_rows * row.position + params.step_columns * column.position,
                 params.step_rows * row.weight + params.step_columns * column.weight};
  // A window of 32 taps that begins with a part of one lasts for 31 whole ones.
  params.window_steps =
      static_cast<int>(h.taps * int64_t{w.taps} <= 32 ? ceil_div(params.packets, kRowPackets)
                                                      : int64_t{31} * params.tap_packets / kRowPackets);
}

template <class T, class Shape>
cudaError_t start(const InputGradient<T>& params, cudaStream_t stream) {
  const int64_t blocks = ceil_div(params.positions, Shape::kRows) * ceil_div(params.s.c, Shape::kColumns);
  // Positions between the samples of one block, which 32 bits have to hold.
  const int64_t per_sample = params.rows_h * int64_t{params.rows_w};
  const int64_t samples = std::min<int64_t>(ceil_div(Shape::kRows - 1, per_sample), params.s.n - 1);
  const int64_t apart = samples * params.s.oh * params.s.ow;
  if (blocks > INT32_MAX || apart > INT32_MAX) return cudaErrorInvalidConfiguration;
  const size_t shared = Shape::kStages * Shape::kStageBytes + Shape::kRows * sizeof(Row);
  const bool keeps = params.branch.keeps_or_drops() && scales_by<T>(params.gamma_offset);
  return launch(keeps ? grad_input_kernel<T, Shape, true> : grad_input_kernel<T, Shape, false>,
                dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), shared, stream, params);
}

// Forward's shapes of tiles, but for the large one of float32, whose rounding to tf32 leaves no registers to carry
// rows. Two stages are enough, since what is formed for the next one waits there; a third of the large one has room for
// sums.
template <class T, class Shape>
using Own = std::conditional_t<sizeof(T) == 2 && Shape::kColumns == 128, Tile<128, 128, 2, 2, 3>,
                               Tile<Shape::kRows, 64, 2, 2, 2>>;

}  // namespace

cudaError_t grad_input(const Problem& p, const GradInputArgs& args, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    InputGradient<T> params;
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
        set_remainders(params, p, a, b);
        const cudaError_t error = with_shape(1, params.positions, p.in_channels, [&](auto shape) {
          return start<T, Own<T, decltype(shape)>>(params, stream);
        });
        if (error != cudaSuccess) return error;
      }
    }
    return cudaSuccess;
  });
}

}  // namespace film::cuda::matrix
