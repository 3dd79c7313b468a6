// Partial sums of dW, db, dgamma and dbeta for few input channels, with u = g * slope(bits):
//   U[n, k, r] = sum_p u[n, k, p] * patch(x)[n, p, r]      r = (kh, kw, c), a product
//   dgamma[n, k] = sum_r W[k, r] U[n, k, r] + b[k] * sum_p u           dW[k, r] = sum_n gamma[n, k] U[n, k, r]
// A sample's output positions are cut into tiles, a unit is a run of tiles of one sample, and a block walks the units
// of one split. Each of its warps has 8 channels x 9 products: its lanes share out the positions, and after every unit
// add up what they have in a fixed order; that tile of U is dotted with the tile of W and added, times gamma, to dW's.
#include "direct_tile.cuh"

namespace film::cuda::direct {
namespace {

constexpr int kProducts = 9;  // of a warp
constexpr int kWarps = 6;     // of a block, at most
constexpr int kTile = kChannels * kProducts;
constexpr int kWarpFloats = 176;       // of shared memory, of a warp alone: tiles of W and dW, offsets, sums
constexpr int64_t kAllWarps = 4096;    // aimed at: some 500 full blocks
constexpr int64_t kLongest = 8192;     // positions of a unit, about: a lane's sums are then of 256
constexpr int64_t kPartial = 1 << 24;  // elements of all partial dW together, at most (unless one alone is larger)

struct GradWeightPlan {
  Tiles tiles;
  Strip strip;
  int k_warps, r_warps;                              // of a block
  int span;                                          // products of a block
  int k_blocks, r_blocks;                            // of all
  int units, sample_units, split_units, unit_tiles;  // of all, of a sample, of a split; tiles of one
  int grad, input;                                   // in shared memory, in floats: after the tiles of W and dW
  size_t shared_bytes;
};

// By shapes alone, but for the order in which the strip is read, which changes nothing in the sums.
GradWeightPlan plan_of(const Sizes& s, const View& input) {
  const int products = s.kh * s.kw * s.c;
  GradWeightPlan plan{};
  const auto fits = [&](int positions, int span, int64_t limit) {
    plan.tiles = tiles_of(s.oh, s.ow, positions);
    plan.span = span;
    plan.r_warps = static_cast<int>(ceil_div(span, kProducts));
    plan.k_warps = std::min(static_cast<int>(ceil_div(s.k, kChannels)), kWarps / plan.r_warps);
    plan.r_blocks = static_cast<int>(ceil_div(products, span));
    plan.k_blocks = static_cast<int>(ceil_div(s.k, plan.k_warps * kChannels));
    // the taps that a block's products can touch, and the box around them
    const int taps = std::min(s.kh * s.kw, span % s.c == 0 ? span / s.c : (span - 2) / s.c + 2);
    const int rows = taps == 1 ? 1 : std::min(s.kh, (taps - 2) / s.kw + 2);
    int64_t elements;
    plan.strip = strip_of(s, input, plan.tiles, {0, 0, rows, rows > 1 ? s.kw : taps}, elements);
    plan.grad = plan.k_warps * plan.r_warps * kWarpFloats;
    plan.input = plan.grad + plan.k_warps * kChannels * plan.tiles.size();
    plan.shared_bytes = static_cast<size_t>(4 * (plan.input + elements));
    return static_cast<int64_t>(plan.shared_bytes) <= limit;
  };
  const auto search = [&] {
    for (const int64_t limit : kSharedBytes)
      for (int positions = 256; positions >= 64; positions /= 2)
        for (int warps = kWarps; warps >= 2; --warps) {
          const int64_t wanted = ceil_div(products, kProducts), blocks = ceil_div(wanted, warps);
          const auto span = static_cast<int>(ceil_div(wanted, blocks) * kProducts);  // blocks of about the same size
          if (fits(positions, std::min(products, span), limit)) return;
        }
    for (int positions = 256; positions > 1; positions /= 2)
      if (fits(positions, s.c, kSharedBytes[1])) return;  // one tap
    fits(1, s.c, kSharedBytes[1]);
  };
  search();
  return plan;
}

Cut cut_of(const Sizes& s, const GradWeightPlan& plan) {
  const int64_t products = int64_t{s.kh} * s.kw * s.c, warps = int64_t{plan.k_warps} * plan.r_warps;
  const int64_t wanted = std::max<int64_t>(1, std::min(kAllWarps / (warps * plan.k_blocks * plan.r_blocks),
                                                       kPartial / std::max<int64_t>(s.k * products, 1)));
  const int64_t tiles = plan.tiles.count();
  const int64_t longest = std::max<int64_t>(1, kLongest / plan.tiles.size());
  const int64_t unit_tiles = std::min(longest, ceil_div(tiles, std::min(tiles, ceil_div(wanted, s.n))));
  Cut cut{};
  cut.sample_units = ceil_div(tiles, unit_tiles);
  cut.split_units = ceil_div(s.n * cut.sample_units, wanted);
  cut.splits = ceil_div(s.n * cut.sample_units, cut.split_units);
  cut.dots = cut.sample_units * plan.r_blocks * plan.r_warps;
  return cut;
}

// Half of `values` goes to the lane whose number differs in `half * kLanes / count`, the other half comes from there.
template <int half, int mask, int count>
__device__ __forceinline__ void add_halves(float (&values)[count]) {
  const bool upper = threadIdx.x & mask;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float keep = upper ? values[i + half] : values[i], send = upper ? values[i] : values[i + half];
    values[i] = keep + __shfl_xor_sync(~0u, send, mask);
  }
}

// Adds `values` over the lanes of a warp, always in the same order: afterwards the first count / 8 of a lane hold the
// sums of what stood at (lane / 4) * count / 8 and after.
template <int count>
__device__ __forceinline__ void add_lanes(float (&values)[count]) {
  add_halves<count / 2, 16>(values);
  add_halves<count / 4, 8>(values);
  add_halves<count / 8, 4>(values);
#pragma unroll
  for (int i = 0; i < count / 8; ++i) values[i] += __shfl_xor_sync(~0u, values[i], 2);
#pragma unroll
  for (int i = 0; i < count / 8; ++i) values[i] += __shfl_xor_sync(~0u, values[i], 1);
}

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    grad_weight_kernel(GradWeightPlan plan, Sizes s, Gradient gradient, View input, View weight, Factor<T> gamma,
                       float gamma_offset, Partials partials, int r_blocks) {
  // The split, the warp's channels k0 .. and products r0 ..; blocks of the same split are neighbours.
  const Tiles& tiles = plan.tiles;
  const auto blocks = static_cast<unsigned>(plan.k_blocks * r_blocks);
  const auto split = static_cast<int>(blockIdx.x / blocks);
  const auto block = static_cast<int>(blockIdx.x % blocks);
  const int k_block = block / r_blocks, r_block = block % r_blocks;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int k_warp = warp % plan.k_warps, r_warp = warp / plan.k_warps;
  const int k0 = (k_block * plan.k_warps + k_warp) * kChannels;
  const int products = s.kh * s.kw * s.c;
  const int r_end = min((r_block + 1) * plan.span, products), r0 = r_block * plan.span + r_warp * kProducts;
  const bool products_wanted = partials.weight != nullptr || partials.dot != nullptr;
  const bool sums_wanted = r_block == 0 && (partials.sum_u != nullptr || partials.sum_g != nullptr);

  auto* const w_tile = ptx::shared_memory<float>() + warp * kWarpFloats;  // [channel][product]
  float* const grad_w_tile = w_tile + kTile;
  float* const sums = grad_w_tile + kTile;  // of the unit's u and of its g [channel]
  const float* const all_sums = sums - warp * kWarpFloats;
  int* const offsets = reinterpret_cast<int*>(sums + 2 * kChannels);  // of each product in the strip
  float* const grad = ptx::shared_memory<float>() + plan.grad;        // u [channel / 4][position][channel % 4]
  float* const strip = ptx::shared_memory<float>() + plan.input;
  const Box box = box_of(r_block * plan.span / s.c, (r_end - 1) / s.c, s.kw);
  if (lane < kProducts) {
    const int r = min(r0 + lane, r_end - 1), tap = r / s.c;
    offsets[lane] = plan.strip.tap(s, tap / s.kw - box.h, tap % s.kw - box.w, r % s.c);
  }
  for (int i = lane; i < kTile; i += kWarp) {
    const int k = k0 + i / kProducts, r = r0 + i % kProducts, tap = r / s.c;
    w_tile[i] = 0.f;
    grad_w_tile[i] = 0.f;
    if (k < s.k && r < r_end)
      w_tile[i] = to_float(static_cast<const T*>(
          weight.data)[k * weight.n + r % s.c * weight.c + tap / s.kw * weight.h + tap % s.kw * weight.w]);
  }

  const int sample_units = plan.sample_units, last_unit = min((split + 1) * plan.split_units, plan.units);
  for (int unit = split * plan.split_units; unit < last_unit; ++unit) {
    const int n = unit / sample_units;
    const int first_tile = (unit - n * sample_units) * plan.unit_tiles;
    const int last_tile = min(first_tile + plan.unit_tiles, tiles.along_h * tiles.along_w);
    float U[kTile] = {};
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const int oh0 = tile / tiles.along_w * tiles.rows, ow0 = tile % tiles.along_w * tiles.columns;
      const int rows = min(tiles.rows, s.oh - oh0), columns = min(tiles.columns, s.ow - ow0);
      __syncthreads();  // what is there has been read
      if (products_wanted)
        load_strip<T>(strip, plan.strip, s, input, n, oh0 * s.sh - s.ph + box.h * s.dh,
                      ow0 * s.sw - s.pw + box.w * s.dw);
      float sum_u[kChannels] = {}, sum_g[kChannels] = {};
      for (int q = r_warp * kWarp + lane; q < rows * tiles.columns && k0 < s.k; q += plan.r_warps * kWarp) {
        const int row = tiles.column.quotient(q), column = q - row * tiles.columns;
        if (column >= columns) continue;
        float g[kChannels], u[kChannels];
        gradient.load<T>(n, oh0 + row, ow0 + column, k0, g, u);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) sum_u[i] += u[i], sum_g[i] += g[i];
        auto* const to = reinterpret_cast<float4*>(grad) + k_warp * 2 * tiles.size() + q;
        to[0] = {u[0], u[1], u[2], u[3]};
        to[tiles.size()] = {u[4], u[5], u[6], u[7]};
      }
      if (sums_wanted) {
        add_lanes(sum_u);
        add_lanes(sum_g);
        if (lane % 4 == 0) {
          sums[lane / 4] = (tile == first_tile ? 0.f : sums[lane / 4]) + sum_u[0];
          sums[kChannels + lane / 4] = (tile == first_tile ? 0.f : sums[kChannels + lane / 4]) + sum_g[0];
        }
      }
      __syncthreads();
      if (!products_wanted || k0 >= s.k || r0 >= r_end) continue;
      int offset[kProducts];
#pragma unroll
      for (int j = 0; j < kProducts; ++j) offset[j] = offsets[j];
      for (int q = lane; q < rows * tiles.columns; q += kWarp) {
        const int row = tiles.column.quotient(q), column = q - row * tiles.columns;
        if (column >= columns) continue;  // never as a product with 0, of which x may make NaN
        const auto* const from = reinterpret_cast<const float4*>(grad) + k_warp * 2 * tiles.size() + q;
        const float* const x = strip + plan.strip.position(s, row, column);
        const float4 low = from[0], high = from[tiles.size()];
        const float u[kChannels] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < kProducts; ++j) {
          const float value = x[offset[j]];
#pragma unroll
          for (int i = 0; i < kChannels; ++i) U[i * kProducts + j] += u[i] * value;
        }
      }
    }

    // Both uses of the unit's U: a lane has the products of channel lane / 4.
    if (products_wanted) {
      add_lanes(U);
      const int k = k0 + lane / 4, row = lane / 4 * kProducts;
      if (lane % 4 == 0 && k < s.k) {
        const float scale = gamma.at(n, k) + gamma_offset;
        float dot = 0.f;
#pragma unroll
        for (int j = 0; j < kProducts; ++j) {
          if (r0 + j >= r_end) continue;
          dot += w_tile[row + j] * U[j];
          grad_w_tile[row + j] += scale * U[j];
        }
        const int64_t nth = (int64_t{unit} * plan.r_blocks + r_block) * plan.r_warps + r_warp;
        if (partials.dot != nullptr) partials.dot[nth * s.k + k] = dot;
      }
    }
    const int nth_channel = static_cast<int>(threadIdx.x), k = k_block * plan.k_warps * kChannels + nth_channel;
    if (sums_wanted && nth_channel < plan.k_warps * kChannels && k < s.k) {
      // of the warps that read the same channels, in turn; all came past a barrier since they left their sums
      const float* from = all_sums + nth_channel / kChannels * kWarpFloats + nth_channel % kChannels;
      float total_u = 0.f, total_g = 0.f;
      for (int w = 0; w < plan.r_warps; ++w, from += plan.k_warps * kWarpFloats) {
        total_u += from[0];
        total_g += from[kChannels];
      }
      if (partials.sum_u != nullptr) partials.sum_u[int64_t{unit} * s.k + k] = total_u;
      if (partials.sum_g != nullptr) partials.sum_g[int64_t{unit} * s.k + k] = total_g;
    }
  }

  if (partials.weight == nullptr) return;
  __syncwarp();  // the tile of dW is the warp's own
  for (int i = lane; i < kTile; i += kWarp) {
    const int k = k0 + i / kProducts, r = r0 + i % kProducts;
    if (k < s.k && r < r_end) partials.weight[(int64_t{split} * s.k + k) * products + r] = grad_w_tile[i];
  }
}

}  // namespace

Cut cut_of(const Problem& p) {
  const Sizes s = sizes_of(p);
  return cut_of(s, plan_of(s, {}));
}

cudaError_t grad_weight(const Problem& p, const GradWeightArgs& args, const Cut& cut, const Partials& partials,
                        cudaStream_t stream) {
  const Sizes s = sizes_of(p);
  GradWeightPlan plan = plan_of(s, args.input);
  plan.units = static_cast<int>(s.n * cut.sample_units);
  plan.sample_units = static_cast<int>(cut.sample_units);
  plan.split_units = static_cast<int>(cut.split_units);
  plan.unit_tiles = static_cast<int>(ceil_div(plan.tiles.count(), cut.sample_units));
  const int r_blocks = partials.weight != nullptr || partials.dot != nullptr ? plan.r_blocks : 1;
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    return launch(grad_weight_kernel<T>, static_cast<unsigned>(cut.splits * plan.k_blocks * r_blocks),
                  plan.k_warps * plan.r_warps * kWarp, plan.shared_bytes, stream, plan, s,
                  gradient_of<T>(p, args.grad, args.bits), args.input, args.weight, factor_of<T>(args.gamma, 1.f),
                  static_cast<float>(p.gamma_offset), partials, r_blocks);
  });
}

}  // namespace film::cuda::direct
