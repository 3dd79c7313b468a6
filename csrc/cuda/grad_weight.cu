// dW, db, dgamma and dbeta as partial sums (kernels.h), which `finish` adds up. With u = g * slope(bits):
//   U[n, k, r] = sum_p u[n, k, p] * patch(x)[n, p, r]      r = (kh, kw, c), a product
//   dgamma[n, k] = <W[k], U[n, k]> + b[k] * sum_p u        dW[k, r] = sum_n gamma[n, k] * U[n, k, r]
// A block walks the units of a split with a tile of U in registers, the product of u and patch over positions on tensor
// cores; after every unit the tile is dotted with the tile of W and added, times gamma, to a tile of dW, in registers
// too. Beside the blocks of the products there is one for each 64 channels that sums u and g.
#include "grad_weight_tile.cuh"
#include "kernels.h"
#include "modulate.cuh"

namespace film::cuda::matrix {
namespace {

constexpr int64_t kBlocks = 512;                        // aimed at, so that a large GPU has work
constexpr int64_t kPartialElements = int64_t{1} << 24;  // of all partial dW together, at most (unless one is larger)

template <class T>
struct Params {
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
  int unit_positions;
};

// Sums of u and g of 64 channels over the units of a split; a thread takes one packet of every few positions.
template <class T>
__device__ void sum_gradients(const Params<T>& p, int k0, int64_t first_unit, int64_t last_unit) {
  constexpr int V = kPacket<T>, kRows = kThreads / kPackets<T>;
  const Sizes& s = p.s;
  float* shared = ptx::shared_memory<float>();  // [2][kRows][kSide]
  const int packet = threadIdx.x % kPackets<T>, row = threadIdx.x / kPackets<T>, k = k0 + packet * V;
  const int out_positions = s.oh * s.ow;
  const int64_t bit_row = (s.k + 7) / 8;
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const int64_t n = unit / p.cut.sample_units;
    const int begin = static_cast<int>(unit % p.cut.sample_units) * p.unit_positions;
    const int end = min(begin + p.unit_positions, out_positions);
    float sum_u[V] = {}, sum_g[V] = {};
    // Runs of 16 are added apart, for digits.
    for (int run = begin + row; run < end; run += 16 * kRows) {
      float run_u[V] = {}, run_g[V] = {};
      for (int q = run; q < min(run + 16 * kRows, end); q += kRows) {
        const int64_t position = n * out_positions + q;
        float g[V];
        unpack<T>(read_packet(p.g + position * s.k + k, k < s.k), g);
        const unsigned bits = p.bits != nullptr && k < s.k ? __ldg(p.bits + position * bit_row + k / 8) : 0xffu;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          run_g[v] += g[v];
          run_u[v] += p.branch(g[v], bits >> ((k + v) & 7) & 1);
        }
      }
#pragma unroll
      for (int v = 0; v < V; ++v) sum_u[v] += run_u[v], sum_g[v] += run_g[v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      shared[row * kSide + packet * V + v] = sum_u[v];
      shared[(kRows + row) * kSide + packet * V + v] = sum_g[v];
    }
    __syncthreads();
    float* out = threadIdx.x < kSide ? p.partials.sum_u : p.partials.sum_g;
    const int column = threadIdx.x % kSide;
    if (out != nullptr && k0 + column < s.k) {
      float total = 0.f;
      for (int i = 0; i < kRows; ++i) total += shared[(threadIdx.x / kSide * kRows + i) * kSide + column];
      out[unit * s.k + k0 + column] = total;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) grad_weight_kernel(const Params<T> p) {
  constexpr int V = kPacket<T>;
  constexpr int kLoads = kSlicePositions<T> * kPackets<T> / kThreads;  // packets of a tile that a thread moves: 4
  constexpr int kLoadRows = kThreads / kPackets<T>;
  constexpr int kSteps = kSlicePositions<T> * sizeof(T) / 32;  // 16 or 8 positions each
  const Sizes& s = p.s;

  // Indices: blocks that share a tile of u are neighbours.
  const int r_block = static_cast<int>(blockIdx.x) % p.r_programs;
  const int k0 = static_cast<int>(blockIdx.x) / p.r_programs % p.k_blocks * kSide;
  const int64_t split = blockIdx.x / p.r_programs / p.k_blocks;
  const int64_t units = s.n * p.cut.sample_units, first_unit = split * p.cut.split_units;
  const int64_t last_unit = min(first_unit + p.cut.split_units, units);
  if (r_block == p.r_blocks) return sum_gradients(p, k0, first_unit, last_unit);

  unsigned char* stages = ptx::shared_memory<unsigned char>();         // two of: a tile of u, a tile of patches
  float* dots = reinterpret_cast<float*>(stages + 4 * kTileBytes<T>);  // [2][kSide]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_k = warp / 2 * 32, warp_r = warp % 2 * 32;
  const int out_positions = s.oh * s.ow;
  const int64_t bit_row = (s.k + 7) / 8;

  // This thread moves the same packet of every row: one product packet, at one kernel tap.
  const int packet = threadIdx.x % kPackets<T>, load_row = threadIdx.x / kPackets<T>;
  const int j = r_block * kPackets<T> + packet, k = k0 + packet * V;
  const int tap = j / p.tap_packets, c = (j - tap * p.tap_packets) * V;
  const int dh = tap / s.kw * s.dh - s.ph, dw = tap % s.kw * s.dw - s.pw;
  uint4 g[kLoads];
  uint8_t bits[kLoads];

  const int unit_slices = static_cast<int>(ceil_div(p.unit_positions, kSlicePositions<T>));
  const auto load_stage = [&](int64_t unit, int slice, int stage) {
    const int64_t n = unit / p.cut.sample_units;
    const int begin = static_cast<int>(unit % p.cut.sample_units) * p.unit_positions;
    const int end = min(begin + p.unit_positions, out_positions);
    unsigned char* patches = stages + (2 * stage + 1) * kTileBytes<T>;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = load_row + i * kLoadRows;
      const int q = begin + slice * kSlicePositions<T> + row;
      const int64_t position = n * out_positions + q;
      const bool valid = q < end && k < s.k;
      g[i] = read_packet(p.g + (valid ? position * s.k + k : 0), valid);
      bits[i] = valid && p.bits != nullptr ? __ldg(p.bits + position * bit_row + k / 8) : 0xff;
      const int h = q / s.ow * s.sh + dh, w = q % s.ow * s.sw + dw;
      const bool inside = q < end && j < p.packets && static_cast<unsigned>(h) < static_cast<unsigned>(s.h) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(s.w);
      const int64_t offset = inside ? ((n * s.h + h) * s.w + w) * s.c + c : 0;
      ptx::cp_async_16(patches + operand_at<T>(row, packet), p.x + offset, inside);
    }
    ptx::cp_async_commit();
  };
  const auto store_stage = [&](int stage) {
    unsigned char* tile = stages + 2 * stage * kTileBytes<T>;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float values[V];
      unpack<T>(g[i], values);
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = p.branch(values[v], bits[i] >> ((k + v) & 7) & 1);
      ptx::store_shared_16(tile + operand_at<T>(load_row + i * kLoadRows, packet), pack<T>(values));
    }
  };

  float U[2][4][4] = {}, dW[2][4][4] = {};
  int stage = 0;
  load_stage(first_unit, 0, 0);
  store_stage(0);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    for (int slice = 0; slice < unit_slices; ++slice, stage ^= 1) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // this stage has landed for all, and the other one has been read by all
      const bool same = slice + 1 < unit_slices, more = same || unit + 1 < last_unit;
      if (more) load_stage(same ? unit : unit + 1, same ? slice + 1 : 0, stage ^ 1);
      const unsigned char *u_tile = stages + 2 * stage * kTileBytes<T>, *patches = u_tile + kTileBytes<T>;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t a[2][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          read_operand<T>(a[i], u_tile, step, warp_k + i * 16, false);
          read_operand<T>(b[i], patches, step, warp_r + i * 16, true);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const uint32_t pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
            multiply(T(), U[i][n], a[i], pair);
          }
        }
      }
      if (more) store_stage(stage ^ 1);
    }

    // The unit is done: both uses of its U. Of a 16 x 8 product this thread has rows lane / 4 and 8 further, columns
    // lane % 4 * 2 and the next.
    const int64_t n = unit / p.cut.sample_units;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_k + i * 16 + half * 8 + lane / 4;
        const bool k_valid = k0 + row < s.k;
        const float scale = k_valid ? p.gamma.at(n, k0 + row) + p.gamma_offset : 0.f;
        float dot = 0.f;
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const int r = r_block * kSide + warp_r + m * 8 + lane % 4 * 2;
          const bool valid = k_valid && r < p.packets * V;
          if (p.partials.dot != nullptr && valid) {
            const T* w = p.w + static_cast<int64_t>(k0 + row) * p.packets * V + r;
            dot += to_float(w[0]) * U[i][m][half * 2] + to_float(w[1]) * U[i][m][half * 2 + 1];
          }
          dW[i][m][half * 2] += scale * U[i][m][half * 2];
          dW[i][m][half * 2 + 1] += scale * U[i][m][half * 2 + 1];
          U[i][m][half * 2] = U[i][m][half * 2 + 1] = 0.f;
        }
        dot += __shfl_xor_sync(0xffffffffu, dot, 1);
        dot += __shfl_xor_sync(0xffffffffu, dot, 2);
        if (lane % 4 == 0) dots[warp % 2 * kSide + row] = dot;
      }
    }
    __syncthreads();
    if (p.partials.dot != nullptr && threadIdx.x < kSide && k0 + threadIdx.x < s.k) {
      const int64_t at = (unit * p.r_blocks + r_block) * s.k + k0 + threadIdx.x;
      p.partials.dot[at] = dots[threadIdx.x] + dots[kSide + threadIdx.x];
    }
  }

  if (p.partials.weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = k0 + warp_k + i * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int r = r_block * kSide + warp_r + m * 8 + lane % 4 * 2;
        if (row >= s.k || r >= p.packets * V) continue;
        float* at = p.partials.weight + (split * s.k + row) * p.packets * V + r;
        *reinterpret_cast<float2*>(at) = make_float2(dW[i][m][half * 2], dW[i][m][half * 2 + 1]);
      }
    }
  }
}

int64_t r_blocks_of(const Problem& p) { return ceil_div(p.h.kernel * p.w.kernel * p.in_channels, kSide); }
int64_t k_blocks_of(const Problem& p) { return ceil_div(p.out_channels, kSide); }
int64_t unit_positions_of(const Problem& p, int64_t sample_units) {
  constexpr int64_t kAtOnce = 64;  // a unit is a whole number of stages of any type
  return ceil_div(ceil_div(p.h.out * p.w.out, sample_units), kAtOnce) * kAtOnce;
}

}  // namespace

Cut cut_of(const Problem& p) {
  const int64_t positions = p.h.out * p.w.out, products = p.h.kernel * p.w.kernel * p.in_channels;
  const int64_t tiles = (r_blocks_of(p) + 1) * k_blocks_of(p);
  const int64_t wanted =
      std::max<int64_t>(1, std::min(kBlocks / tiles, kPartialElements / (p.out_channels * products)));  // splits
  Cut cut;
  cut.sample_units = std::min(ceil_div(wanted, p.batch), ceil_div(positions, 64));
  cut.sample_units = ceil_div(positions, unit_positions_of(p, cut.sample_units));
  cut.split_units = ceil_div(p.batch * cut.sample_units, wanted);
  cut.splits = ceil_div(p.batch * cut.sample_units, cut.split_units);
  cut.dots = cut.sample_units * r_blocks_of(p);
  return cut;
}

cudaError_t grad_weight(const Problem& p, const GradWeightArgs& args, const Cut& cut, const Partials& partials,
                        cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    Params<T> params;
    params.s = sizes_of(p);
    params.g = static_cast<const T*>(args.grad.data);
    params.x = static_cast<const T*>(args.input.data);
    params.w = static_cast<const T*>(args.weight.data);
    params.bits = args.bits;
    params.gamma = factor_of<T>(args.gamma, 1.f);
    params.gamma_offset = static_cast<float>(p.gamma_offset);
    params.branch = branch_of(p);
    params.partials = partials;
    params.cut = cut;
    params.tap_packets = params.s.c / kPacket<T>;
    params.packets = params.s.kh * params.s.kw * params.tap_packets;
    params.r_blocks = static_cast<int>(r_blocks_of(p));
    params.k_blocks = static_cast<int>(k_blocks_of(p));
    params.unit_positions = static_cast<int>(unit_positions_of(p, cut.sample_units));
    // Blocks without a task are not started: those of products, or those of the sums.
    const bool products = partials.weight != nullptr || partials.dot != nullptr;
    const bool sums = partials.sum_u != nullptr || partials.sum_g != nullptr;
    if (!products) params.r_blocks = 0;
    params.r_programs = params.r_blocks + (sums ? 1 : 0);
    if (params.r_programs == 0) return cudaSuccess;
    const int64_t blocks = cut.splits * params.k_blocks * params.r_programs;
    const size_t shared = 4 * kTileBytes<T> + 2 * kSide * sizeof(float);
    return launch(grad_weight_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, stream, params);
  });
}

}  // namespace film::cuda::matrix
