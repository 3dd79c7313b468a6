// dx = conv_transpose(dz, W), dz = gamma * u and u = g * slope(bits), for few input channels. dz is formed 8 output
// channels at a time on the way into shared memory and is nowhere else.
//
// With oh * stride = h + pad - kh * dilation, input rows h of one remainder by the stride meet the same kernel rows kh,
// and no others; columns likewise. So the input is taken in cells of stride x stride positions: a tile of cells needs
// one tile of dz, and of a block's warps each has positions of one class, those at the same place in their cells.
#include <numeric>

#include "direct_tile.cuh"

namespace film::cuda::direct {
namespace {

constexpr int kMostClasses = 8;       // of one block
constexpr int kStagedWeights = 4096;  // floats of W in shared memory at once, about

struct GradInputPlan {
  Tiles cells;
  int classes, class_groups;  // of one block; blocks for one tile
  int step_h, step_w;         // from a kernel row or column of a class to the next
  int box_h, box_w;           // taps staged at once
  int rows, columns;          // of the tile of dz
  Divisor column;
  int warps;
  int grad, stage;  // in shared memory, in floats: after gamma and the weights
  size_t shared_bytes;
};

// Cells of a lane: a thread has twice as many sums as that, times the input channels.
__host__ __device__ constexpr int cells_of(int channels) { return channels > 8 ? 2 : 4; }

// Floats from one channel's row of W to the next.
__host__ __device__ constexpr int pitch_of(int channels) { return channels == 3 ? 4 : channels; }

GradInputPlan plan_of(const Sizes& s, const GradInputArgs& args, int channels) {
  GradInputPlan plan{};
  const int classes = s.sh * s.sw;
  plan.class_groups = static_cast<int>(ceil_div(classes, kMostClasses));
  plan.classes = static_cast<int>(ceil_div(classes, plan.class_groups));
  plan.step_h = s.sh / std::gcd(s.sh, s.dh);
  plan.step_w = s.sw / std::gcd(s.sw, s.dw);
  const auto cell_rows = static_cast<int>(ceil_div(s.h, s.sh)), cell_columns = static_cast<int>(ceil_div(s.w, s.sw));
  const auto fits = [&](int warps, int box_h, int box_w, int64_t limit) {  // warps of each class
    plan.cells = tiles_of(cell_rows, cell_columns, warps * kWarp * cells_of(channels));
    warps = static_cast<int>(ceil_div(plan.cells.size(), kWarp * cells_of(channels)));
    plan.warps = plan.classes * warps;
    plan.box_h = box_h;
    plan.box_w = box_w;
    const int64_t rows = plan.cells.rows + ceil_div(int64_t{box_h - 1} * s.dh + s.sh - 1, s.sh);
    const int64_t columns = plan.cells.columns + ceil_div(int64_t{box_w - 1} * s.dw + s.sw - 1, s.sw);
    if (rows > limit || columns > limit) return false;
    plan.rows = static_cast<int>(rows);
    plan.columns = static_cast<int>(columns);
    plan.column = divisor_of(plan.columns);
    const int64_t weights = kChannels + int64_t{box_h} * box_w * kChannels * pitch_of(channels);
    const int64_t grad = kChannels * rows * columns;
    const int64_t staged = args.grad_input.c == 1 ? plan.warps * kWarp * (channels + 1) : 0;
    const int64_t bytes = 4 * (weights + grad + staged);
    plan.grad = static_cast<int>(weights);
    plan.stage = static_cast<int>(weights + grad);
    plan.shared_bytes = static_cast<size_t>(bytes);
    return bytes <= limit;
  };
  int warps = std::max(1, kMostWarps / plan.classes);
  const auto blocks = [&] {
    return s.n * plan.class_groups * tiles_of(cell_rows, cell_columns, warps * kWarp * cells_of(channels)).count();
  };
  while (warps > 1 && blocks() < kManyBlocks) warps /= 2;
  const auto staged = [&](int64_t taps) { return taps * kChannels * pitch_of(channels) <= kStagedWeights; };
  for (const int64_t limit : kSharedBytes) {
    for (int w = warps; w >= 1; w /= 2)
      if (staged(int64_t{s.kh} * s.kw) && fits(w, s.kh, s.kw, limit)) return plan;
    for (int rows = s.kh - 1; rows >= 1; --rows)
      if (staged(int64_t{rows} * s.kw) && fits(1, rows, s.kw, limit)) return plan;
    for (int columns = s.kw - 1; columns >= 1; --columns)
      if (staged(columns) && fits(1, 1, columns, limit)) return plan;
  }
  fits(1, 1, 1, kSharedBytes[1]);
  return plan;
}

// The first tap with tap * dilation = remainder (mod stride), or `taps` where there is none.
__device__ __forceinline__ int first_tap(int remainder, int taps, int stride, int dilation, int step) {
  for (int tap = 0; tap < min(taps, step); ++tap)
    if ((tap * dilation - remainder) % stride == 0) return tap;
  return taps;
}

template <class T, int kIn>
__global__ void __launch_bounds__(kMostClasses* kWarp, kIn == 3 || kIn == 4 ? 3 : 2)
    grad_input_kernel(GradInputPlan plan, Sizes s, Gradient gradient, View weight, View grad_input, Factor<T> gamma,
                      float gamma_offset) {
  constexpr int kPitch = pitch_of(kIn), kCells = cells_of(kIn);
  // The warp's class (a, b), and the cells (i, j) of its lanes; their positions are (i * sh + a, j * sw + b).
  const Tiles& cells = plan.cells;
  const auto count = static_cast<unsigned>(cells.count() * plan.class_groups);
  const int64_t n = blockIdx.x / count;
  const auto block = static_cast<int>(blockIdx.x % count);
  const int tile = block / plan.class_groups, group = block % plan.class_groups;
  const int i0 = tile / cells.along_w * cells.rows, j0 = tile % cells.along_w * cells.columns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int place = group * plan.classes + warp % plan.classes;  // from sh * sw on there is no such class
  const int a = place / s.sw, b = place % s.sw;
  const int first_cell = warp / plan.classes * kWarp + lane, cell_step = plan.warps / plan.classes * kWarp;
  const int first_h = first_tap(a + s.ph, s.kh, s.sh, s.dh, plan.step_h);
  const int first_w = first_tap(b + s.pw, s.kw, s.sw, s.dw, plan.step_w);
  int position[kCells];
#pragma unroll
  for (int m = 0; m < kCells; ++m) {
    const int q = min(first_cell + m * cell_step, cells.size() - 1);
    const int row = cells.column.quotient(q);
    position[m] = row * plan.columns + q - row * cells.columns;
  }
  auto* const scales = ptx::shared_memory<float>();  // gamma [channel of the eight]
  float* const weights = scales + kChannels;         // [tap of the box][output channel][input channel]
  float* const grad = scales + plan.grad;            // dz [output channel][row][column]
  const int plane = plan.rows * plan.columns;

  // dx[c, h, w] = sum_(kh, kw, k) dz[k, oh, ow] W[k, c, kh, kw]
  float sum[kCells][kIn] = {};
  for (int k0 = 0; k0 < s.k; k0 += kChannels) {
    const int channels = min(s.k - k0, kChannels);
    // read between the barriers below alone
    if (const auto i = static_cast<int>(threadIdx.x); i < channels) scales[i] = gamma.at(n, k0 + i) + gamma_offset;
    for (int kh0 = 0; kh0 < s.kh; kh0 += plan.box_h)
      for (int kw0 = 0; kw0 < s.kw; kw0 += plan.box_w) {
        const int kh1 = min(kh0 + plan.box_h, s.kh), kw1 = min(kw0 + plan.box_w, s.kw);
        // the lowest output position that a cell (0, 0) meets in this box
        const int low_h = floor_div(s.ph - (kh1 - 1) * s.dh, s.sh), low_w = floor_div(s.pw - (kw1 - 1) * s.dw, s.sw);
        __syncthreads();  // what is there has been read
        for (int i = threadIdx.x; i < (kh1 - kh0) * (kw1 - kw0) * kChannels * kPitch; i += blockDim.x) {
          const int c = i % kPitch, k = k0 + i / kPitch % kChannels, tap = i / (kPitch * kChannels);
          const int kh = kh0 + tap / (kw1 - kw0), kw = kw0 + tap % (kw1 - kw0);
          const T* const w = static_cast<const T*>(weight.data) + kh * weight.h + kw * weight.w;
          weights[i] = k < s.k && c < s.c ? to_float(w[k * weight.n + c * weight.c]) : 0.f;
        }
        for (int q = threadIdx.x; q < plane; q += blockDim.x) {
          const int row = plan.column.quotient(q);
          const int oh = i0 + low_h + row, ow = j0 + low_w + q - row * plan.columns;
          const bool inside = static_cast<unsigned>(oh) < static_cast<unsigned>(s.oh) &&
                              static_cast<unsigned>(ow) < static_cast<unsigned>(s.ow);
          float g[kChannels], u[kChannels] = {};
          if (inside) gradient.load<T>(n, oh, ow, k0, g, u);
#pragma unroll
          for (int i = 0; i < kChannels; ++i)  // nothing outside the output, where gamma may be infinite
            if (i < channels) grad[i * plane + q] = inside ? scales[i] * u[i] : 0.f;
        }
        __syncthreads();
        const int from_h = first_h + max(0, static_cast<int>(ceil_div(kh0 - first_h, plan.step_h))) * plan.step_h;
        const int from_w = first_w + max(0, static_cast<int>(ceil_div(kw0 - first_w, plan.step_w))) * plan.step_w;
        for (int kh = from_h; kh < kh1; kh += plan.step_h) {
          const int row = ((a + s.ph - kh * s.dh) / s.sh - low_h) * plan.columns - low_w;
          float part[kCells][kIn] = {};  // a chain of its own, short enough to keep digits
          int column = (b + s.pw - from_w * s.dw) / s.sw;
          for (int kw = from_w; kw < kw1; kw += plan.step_w, column -= plan.step_w * s.dw / s.sw) {
            const float* const w = weights + ((kh - kh0) * (kw1 - kw0) + kw - kw0) * kChannels * kPitch;
            const float* const dz = grad + row + column;
#pragma unroll 2
            for (int i = 0; i < channels; ++i) {
              float w_row[kPitch], x[kCells];
              load_row(w_row, w + i * kPitch);
#pragma unroll
              for (int m = 0; m < kCells; ++m) x[m] = dz[i * plane + position[m]];
#pragma unroll
              for (int m = 0; m < kCells; ++m)
#pragma unroll
                for (int c = 0; c < kIn; ++c) part[m][c] += w_row[c] * x[m];
            }
          }
#pragma unroll
          for (int m = 0; m < kCells; ++m)
#pragma unroll
            for (int c = 0; c < kIn; ++c) sum[m][c] += part[m][c];
        }
      }
  }

  // Every input position is written once.
  float* const stage = scales + plan.stage + warp * kStoreStage<kIn>;
#pragma unroll
  for (int m = 0; m < kCells; ++m) {
    const int q = first_cell + m * cell_step, row = cells.column.quotient(q);
    const int h = (i0 + row) * s.sh + a, w = (j0 + q - row * cells.columns) * s.sw + b;
    const bool inside = place < s.sh * s.sw && q < cells.size() && h < s.h && w < s.w;
    const int64_t offset = inside ? n * grad_input.n + h * grad_input.h + w * grad_input.w : -1;
    store_channels(static_cast<T*>(grad_input.data), grad_input.c, offset, sum[m], s.c, stage);
  }
}

template <int kIn>
cudaError_t grad_input_of(const Problem& p, const GradInputArgs& args, cudaStream_t stream) {
  const Sizes s = sizes_of(p);
  const GradInputPlan plan = plan_of(s, args, kIn);
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    return launch(grad_input_kernel<T, kIn>, static_cast<unsigned>(s.n * plan.cells.count() * plan.class_groups),
                  plan.warps * kWarp, plan.shared_bytes, stream, plan, s, gradient_of<T>(p, args.grad, args.bits),
                  args.weight, args.grad_input, factor_of<T>(args.gamma, 1.f), static_cast<float>(p.gamma_offset));
  });
}

}  // namespace

cudaError_t grad_input(const Problem& p, const GradInputArgs& args, cudaStream_t stream) {
  if (p.in_channels == 1) return grad_input_of<1>(p, args, stream);
  if (p.in_channels <= 3) return grad_input_of<3>(p, args, stream);
  if (p.in_channels == 4) return grad_input_of<4>(p, args, stream);
  if (p.in_channels <= 8) return grad_input_of<8>(p, args, stream);
  return grad_input_of<16>(p, args, stream);
}

}  // namespace film::cuda::direct
