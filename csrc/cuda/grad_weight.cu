// dW, db, dgamma and dbeta as partial sums (kernels.h), which `finish` adds up. With u = g * slope(bits):
//   U[n, k, r] = sum_p u[n, k, p] * patch(x)[n, p, r]      r = (kh, kw, c), a product
//   dgamma[n, k] = <W[k], U[n, k]> + b[k] * sum_p u        dW[k, r] = sum_n gamma[n, k] * U[n, k, r]
// A block walks the units of a split with a tile of U in registers, the product of u and patch over positions on tensor
// cores; after every unit the tile is dotted with the tile of W and added, times gamma, to a tile of dW, in registers
// too. Beside the blocks of the products there is one for each 64 channels that sums u and g.
#include "grad_weight_carrier.cuh"

namespace film::cuda::matrix {
namespace {

constexpr int64_t kBlocks = 512;                        // aimed at, so that a large GPU has work
constexpr int64_t kPartialElements = int64_t{1} << 24;  // of all partial dW together, at most (unless one is larger)

// Sums of u and g of 64 channels over the units of a split; a thread takes one packet of every few positions.
template <class T>
__device__ void sum_gradients(const WeightGradient<T>& p, int k0, int64_t first_unit, int64_t last_unit) {
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

template <class T, int TILES, bool KEEPS>
__global__ void __launch_bounds__(kThreads, 2) grad_weight_kernel(const WeightGradient<T> p) {
  constexpr int V = kPacket<T>, kProducts = TILES * kSide;     // of a block
  constexpr int kPairs = 2 * TILES;                            // of operands B that a warp multiplies with
  constexpr int kSteps = kSlicePositions<T> * sizeof(T) / 32;  // 16 or 8 positions each
  constexpr int kStageBytes = (1 + TILES) * kTileBytes<T>;     // a tile of u, and of patches
  const Sizes& s = p.s;

  // Indices: blocks that share a tile of u are neighbours.
  const int r_block = static_cast<int>(blockIdx.x) % p.r_programs;
  const int k0 = static_cast<int>(blockIdx.x) / p.r_programs % p.k_blocks * kSide;
  const int64_t split = blockIdx.x / p.r_programs / p.k_blocks;
  const int64_t units = s.n * p.cut.sample_units, first_unit = split * p.cut.split_units;
  const int64_t last_unit = min(first_unit + p.cut.split_units, units);
  if (r_block == p.r_blocks) return sum_gradients(p, k0, first_unit, last_unit);

  unsigned char* stages = ptx::shared_memory<unsigned char>();       // two of them
  float* dots = reinterpret_cast<float*>(stages + 2 * kStageBytes);  // [2][kSide]
  int2* begins = reinterpret_cast<int2*>(dots + 2 * kSide);          // [kSlicePositions]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_k = warp / 2 * 32, warp_r = warp % 2 * 32 * TILES;
  if (threadIdx.x < kSlicePositions<T>)
    begins[threadIdx.x] = Carrier<T, TILES, KEEPS>::place_of(s, static_cast<int>(threadIdx.x));
  const int operands_u = held(operands_of<T>(warp_k, false));
  const int operands_x = held((1 + warp_r / kSide) * kTileBytes<T> + operands_of<T>(warp_r % kSide, true));

  Carrier<T, TILES, KEEPS> carrier(p, begins, first_unit, k0, r_block);
  float U[2][2 * kPairs][4] = {}, dW[2][2 * kPairs][4] = {};
  unsigned char *read = stages, *filled = stages + kStageBytes;
  carrier.load(read + kTileBytes<T>);
  carrier.store(read);
  const int unit_stages = p.unit_positions / kSlicePositions<T>;
  int64_t n = first_unit / p.cut.sample_units;
  int unit_of_sample = static_cast<int>(first_unit - n * p.cut.sample_units);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    for (int stage = 0; stage < unit_stages; ++stage) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // this stage has landed for all, and the other one has been read by all
      const bool more = stage + 1 < unit_stages || unit + 1 < last_unit;
      if (more) {
        carrier.advance();
        carrier.load(filled + kTileBytes<T>);
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t a[2][4], b[kPairs][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) read_operand<T>(a[i], read, operands_u, step, i, false);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) read_operand<T>(b[i], read, operands_x, step, i, true);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int m = 0; m < 2 * kPairs; ++m) {
            const uint32_t pair[2] = {b[m / 2][m % 2 * 2], b[m / 2][m % 2 * 2 + 1]};
            multiply(T(), U[i][m], a[i], pair);
          }
        }
      }
      if (more) carrier.store(filled);
      unsigned char* const next = filled;
      filled = read, read = next;
    }

    // The unit is done: both uses of its U. Of a 16 x 8 product this thread has rows lane / 4 and 8 further, columns
    // lane % 4 * 2 and the next.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_k + i * 16 + half * 8 + lane / 4;
        const bool k_valid = k0 + row < s.k;
        const float scale = k_valid ? p.gamma.at(n, k0 + row) + p.gamma_offset : 0.f;
        float dot = 0.f;
#pragma unroll
        for (int m = 0; m < 2 * kPairs; ++m) {
          const int r = r_block * kProducts + warp_r + m * 8 + lane % 4 * 2;
          const bool valid = k_valid && r < p.packets * V;
          if (p.partials.dot != nullptr && valid) {
            const float2 w = read_pair(p.w + static_cast<int64_t>(k0 + row) * p.packets * V + r);
            dot += w.x * U[i][m][half * 2] + w.y * U[i][m][half * 2 + 1];
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
    if (++unit_of_sample == p.cut.sample_units) unit_of_sample = 0, ++n;
  }

  if (p.partials.weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = k0 + warp_k + i * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int m = 0; m < 2 * kPairs; ++m) {
        const int r = r_block * kProducts + warp_r + m * 8 + lane % 4 * 2;
        if (row >= s.k || r >= p.packets * V) continue;
        float* at = p.partials.weight + (split * s.k + row) * p.packets * V + r;
        *reinterpret_cast<float2*>(at) = make_float2(dW[i][m][half * 2], dW[i][m][half * 2 + 1]);
      }
    }
  }
}

// Two tiles of products to one of channels read less of shared memory for a product, by a quarter; but the last of them
// may be empty, and float32's sums and what it rounds to tf32 leave no registers.
int64_t tiles_of(const Problem& p) {
  const int64_t tiles = ceil_div(p.h.kernel * p.w.kernel * p.in_channels, kSide);
  return p.dtype != DType::f32 && 3 * ceil_div(tiles, 2) < 2 * tiles ? 2 : 1;
}

int64_t r_blocks_of(const Problem& p) { return ceil_div(p.h.kernel * p.w.kernel * p.in_channels, kSide * tiles_of(p)); }
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
    WeightGradient<T> params;
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
    params.sample_stages = static_cast<int>(cut.sample_units * (params.unit_positions / kSlicePositions<T>));
    params.stage_columns = kSlicePositions<T> % params.s.ow * params.s.sw;
    params.stage_rows = kSlicePositions<T> / params.s.ow * params.s.sh;
    params.row_ends = params.s.ow * params.s.sw;
    // Blocks without a task are not started: those of products, or those of the sums.
    const bool products = partials.weight != nullptr || partials.dot != nullptr;
    const bool sums = partials.sum_u != nullptr || partials.sum_g != nullptr;
    if (!products) params.r_blocks = 0;
    params.r_programs = params.r_blocks + (sums ? 1 : 0);
    if (params.r_programs == 0) return cudaSuccess;
    const int64_t blocks = cut.splits * params.k_blocks * params.r_programs;
    const auto start = [&](auto tiles, auto keeps) {
      constexpr int kTiles = decltype(tiles)::value;
      const size_t shared =
          2 * (1 + kTiles) * kTileBytes<T> + 2 * kSide * sizeof(float) + kSlicePositions<T> * sizeof(int2);
      return launch(grad_weight_kernel<T, kTiles, decltype(keeps)::value>, dim3(static_cast<unsigned>(blocks)),
                    dim3(kThreads), shared, stream, params);
    };
    const auto with_tiles = [&](auto keeps) {
      if constexpr (sizeof(T) == 2) {
        if (tiles_of(p) == 2) return start(std::integral_constant<int, 2>(), keeps);
      }
      return start(std::integral_constant<int, 1>(), keeps);
    };
    return params.branch.keeps_or_drops() ? with_tiles(std::true_type()) : with_tiles(std::false_type());
  });
}

}  // namespace film::cuda::matrix
