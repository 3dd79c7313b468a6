// y = FiLM(act(conv(x, W) + b)), and one bit an element of where the activation was on its upper branch, for few input
// channels. A block takes a tile of output positions of one sample: the input under it is read once into shared memory,
// and then output channels are worked out 8 at a time, 8 x 4 sums in the registers of a thread.
#include "direct_tile.cuh"

namespace film::cuda::direct {
namespace {

constexpr int kStagedProducts = 512;  // rows of W in shared memory at once, about

struct ForwardPlan {
  Tiles tiles;
  Patch patch;
  bool whole;  // the patch holds what all taps need, and is read once; else it is read again for every span
  int span;    // taps staged at once
  int threads;
  int offsets, input, stage;  // in shared memory, in floats: after the weights
  size_t shared_bytes;
};

// The largest tile with which everything fits; where it cannot, fewer taps at a time, and at last fewer positions.
ForwardPlan plan_of(const Sizes& s, const ForwardArgs& args) {
  const int taps = s.kh * s.kw;
  ForwardPlan plan{};
  const auto fits = [&](int positions, int span, bool whole, int64_t limit) {
    plan.tiles = tiles_of(s.oh, s.ow, positions);
    plan.whole = whole;
    plan.span = whole ? std::min(taps, std::max(1, kStagedProducts / s.c)) : span;
    plan.threads = static_cast<int>(ceil_div(ceil_div(plan.tiles.size(), kPositions), kWarp)) * kWarp;
    int rows = s.kh, columns = s.kw;  // of the largest box
    if (!whole && span % s.kw == 0) rows = span / s.kw;
    if (!whole && span < s.kw) rows = 1, columns = span;
    int64_t elements;
    plan.patch = patch_of(s, args.input, plan.tiles, {0, 0, rows, columns}, elements);
    plan.offsets = plan.span * s.c * kChannels;
    plan.input = plan.offsets + plan.span * s.c;
    plan.stage = plan.input + static_cast<int>(elements);
    const int64_t staged = args.output.c == 1 ? int64_t{plan.threads} / kWarp * kStoreStage<kChannels> : 0;
    plan.shared_bytes = static_cast<size_t>(4 * (plan.stage + staged));
    return 4 * (plan.stage + staged) <= limit;
  };
  int warps = kMostWarps;
  const auto blocks = [&] { return s.n * tiles_of(s.oh, s.ow, warps * kWarp * kPositions).count(); };
  while (warps > 1 && blocks() < kManyBlocks) warps /= 2;
  for (const int64_t limit : kSharedBytes)
    for (int w = warps; w >= 1; w /= 2)
      if (fits(w * kWarp * kPositions, taps, true, limit)) return plan;
  for (const int64_t limit : kSharedBytes) {
    for (int rows = s.kh - 1; rows >= 1; --rows)
      if (rows * s.kw * s.c <= kStagedProducts && fits(kWarp * kPositions, rows * s.kw, false, limit)) return plan;
    for (int span = s.kw - 1; span >= 1; --span)
      if (s.kw % span == 0 && span * s.c <= kStagedProducts && fits(kWarp * kPositions, span, false, limit))
        return plan;
  }
  for (int positions = kWarp * kPositions / 2; positions > 1; positions /= 2)
    if (fits(positions, 1, false, kSharedBytes[1])) return plan;
  fits(1, 1, false, kSharedBytes[1]);
  return plan;
}

template <class T>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    forward_kernel(ForwardPlan plan, Sizes s, View input, View weight, View output, Modulation<T> film, uint8_t* bits) {
  // Positions q of the tile are shared out thread by thread.
  const Tiles& tiles = plan.tiles;
  const auto count = static_cast<unsigned>(tiles.count());
  const int64_t n = blockIdx.x / count;
  const auto tile = static_cast<int>(blockIdx.x % count);
  const int oh0 = tile / tiles.along_w * tiles.rows, ow0 = tile % tiles.along_w * tiles.columns;
  int position[kPositions];
#pragma unroll
  for (int j = 0; j < kPositions; ++j) {
    const int q = min(static_cast<int>(threadIdx.x + j * blockDim.x), tiles.size() - 1);
    const int row = tiles.column.quotient(q);
    position[j] = plan.patch.position(s, row, q - row * tiles.columns);
  }
  auto* const weights = ptx::shared_memory<float>();  // [product][channel of the chunk]
  int* const offsets = ptx::shared_memory<int>() + plan.offsets;
  float* const patch = weights + plan.input;
  float* const stage = weights + plan.stage + threadIdx.x / kWarp * kStoreStage<kChannels>;

  const auto channels_from = [&](int k0, auto count) {
    constexpr int kCount = decltype(count)::value;
    // z[k, q] = sum_r W[k, r] patch(x)[q, r], r = (kh, kw, c)
    float sum[kPositions][kCount] = {};
    for (int first = 0; first < s.kh * s.kw; first += plan.span) {
      const int last = min(first + plan.span, s.kh * s.kw) - 1, products = (last - first + 1) * s.c;
      const Box box = plan.whole ? Box{} : box_of(first, last, s.kw);
      __syncthreads();  // what is there has been read
      for (int i = threadIdx.x; i < products * kCount; i += blockDim.x) {
        const int r = i / kCount, k = k0 + i % kCount;
        const int tap = first + r / s.c, c = r % s.c, kh = tap / s.kw, kw = tap % s.kw;
        const T* const w = static_cast<const T*>(weight.data) + c * weight.c + kh * weight.h + kw * weight.w;
        weights[i] = k < s.k ? to_float(w[k * weight.n]) : 0.f;
        if (i % kCount == 0) offsets[r] = plan.patch.tap(s, kh - box.h, kw - box.w, c);
      }
      if (!plan.whole || (k0 == 0 && first == 0))
        load_patch<T>(patch, plan.patch, s, input, n, oh0 * s.sh - s.ph + box.h * s.dh,
                      ow0 * s.sw - s.pw + box.w * s.dw);
      __syncthreads();
#pragma unroll 3
      for (int r = 0; r < products; ++r) {
        float w[kCount], x[kPositions];
        const int offset = offsets[r];
        load_row(w, weights + r * kCount);
#pragma unroll
        for (int j = 0; j < kPositions; ++j) x[j] = patch[position[j] + offset];
#pragma unroll
        for (int j = 0; j < kPositions; ++j)
#pragma unroll
          for (int i = 0; i < kCount; ++i) sum[j][i] += w[i] * x[j];
      }
    }

    // Bias, activation, FiLM, bits; each output is written once.
    float bias[kCount], scale[kCount], shift[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int k = min(k0 + i, s.k - 1);
      bias[i] = film.bias.at(0, k);
      scale[i] = film.scale(n, k);
      shift[i] = film.beta.at(n, k);
    }
#pragma unroll
    for (int j = 0; j < kPositions; ++j) {
      const auto q = static_cast<int>(threadIdx.x + j * blockDim.x);
      const int row = tiles.column.quotient(q), oh = oh0 + row, ow = ow0 + q - row * tiles.columns;
      const bool inside = q < tiles.size() && oh < s.oh && ow < s.ow;
      float y[kCount];
      unsigned byte = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        bool upper;
        y[i] = film(sum[j][i] + bias[i], scale[i], shift[i], upper);
        if (upper && k0 + i < s.k) byte |= 1u << i;
      }
      const int64_t offset = inside ? n * output.n + oh * output.h + ow * output.w + k0 * output.c : -1;
      store_channels(static_cast<T*>(output.data), output.c, offset, y, s.k - k0, stage);
      if (inside && bits != nullptr)
        bits[((n * s.oh + oh) * s.ow + ow) * ceil_div(s.k, kChannels) + k0 / kChannels] = static_cast<uint8_t>(byte);
    }
  };

  for (int k0 = 0; k0 < s.k; k0 += kChannels) {
    if (s.k - k0 > 4) {
      channels_from(k0, Int<8>());
    } else if (s.k - k0 > 2) {
      channels_from(k0, Int<4>());
    } else {
      channels_from(k0, Int<2>());
    }
  }
}

}  // namespace

cudaError_t forward(const Problem& p, const ForwardArgs& args, cudaStream_t stream) {
  const Sizes s = sizes_of(p);
  const ForwardPlan plan = plan_of(s, args);
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    return launch(forward_kernel<T>, static_cast<unsigned>(s.n * plan.tiles.count()), plan.threads, plan.shared_bytes,
                  stream, plan, s, args.input, args.weight, args.output,
                  modulation_of<T>(p, args.bias, args.gamma, args.beta), args.bits);
  });
}

}  // namespace film::cuda::direct
