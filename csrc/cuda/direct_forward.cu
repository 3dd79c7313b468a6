// y = FiLM(act(conv(x, W) + b)), and one bit an element of where the activation was on its upper branch, for few input
// channels. A block takes a tile of output positions of one sample: the input under it is read once into shared memory,
// and then output channels are worked out 8 at a time, 8 x 4 sums in the registers of a thread.
#include "direct_tile.cuh"

namespace film::cuda::direct {
namespace {

constexpr int kStagedProducts = 512;  // rows of W in shared memory at once, about

struct ForwardPlan {
  Tiles tiles;
  Strip strip;
  bool whole;  // the strip holds what all taps need, and is read once; else it is read again for every span
  int span;    // taps staged at once
  int threads;
  int weights, factors, offsets, input, stage;  // in shared memory, in floats: after the places
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
    plan.strip = strip_of(s, args.input, plan.tiles, {0, 0, rows, columns}, elements);
    plan.weights = plan.threads * kPositions * 2;
    plan.factors = plan.weights + plan.span * s.c * kChannels;
    plan.offsets = plan.factors + 3 * kChannels;
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

// Adds the staged products of the first kCount channels of the eight.
template <int kCount>
__device__ __forceinline__ void add_products(float (&sum)[kPositions][kChannels], const float* weights,
                                             const int* offsets, int products, const float* strip,
                                             const int (&position)[kPositions]) {
#pragma unroll 3
  for (int r = 0; r < products; ++r) {
    float w[kCount], x[kPositions];
    const int offset = offsets[r];
    load_row(w, weights + r * kChannels);
#pragma unroll
    for (int j = 0; j < kPositions; ++j) x[j] = strip[position[j] + offset];
#pragma unroll
    for (int j = 0; j < kPositions; ++j)
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum[j][i] += w[i] * x[j];
  }
}

template <class T, bool kSmooth>
__global__ void __launch_bounds__(kMostWarps* kWarp, kSmooth ? 4 : 5)
    forward_kernel(ForwardPlan plan, Sizes s, View input, View weight, View output, Modulation<T> film, uint8_t* bits,
                   T* bias_copy) {
  // Positions q of the tile are shared out thread by thread.
  const Tiles& tiles = plan.tiles;
  const auto count = static_cast<unsigned>(tiles.count());
  const int64_t n = blockIdx.x / count;
  const auto tile = static_cast<int>(blockIdx.x % count);
  const int oh0 = tile / tiles.along_w * tiles.rows, ow0 = tile % tiles.along_w * tiles.columns;
  auto* const places = ptx::shared_memory<int64_t>();
  int position[kPositions];
#pragma unroll
  for (int j = 0; j < kPositions; ++j) {
    const auto q = static_cast<int>(threadIdx.x + j * blockDim.x);
    const int row = tiles.column.quotient(q), oh = oh0 + row, ow = ow0 + q - row * tiles.columns;
    const bool inside = q < tiles.size() && oh < s.oh && ow < s.ow;
    places[q] = inside ? int64_t{oh} * s.ow + ow : -1;
    position[j] = inside ? plan.strip.position(s, oh - oh0, ow - ow0) : 0;
  }
  auto* const shared = ptx::shared_memory<float>();
  float* const weights = shared + plan.weights;  // [product][channel of the eight]
  float* const factors = shared + plan.factors;  // bias, gamma and beta [channel of the eight]
  int* const offsets = ptx::shared_memory<int>() + plan.offsets;
  float* const strip = shared + plan.input;
  float* const stage = shared + plan.stage + threadIdx.x / kWarp * kStoreStage<kChannels>;

  const int row_bytes = (s.k + kChannels - 1) / kChannels;
  for (int k0 = 0; k0 < s.k; k0 += kChannels) {
    // z[k, q] = sum_r W[k, r] patch(x)[q, r], r = (kh, kw, c)
    float sum[kPositions][kChannels] = {};
    for (int first = 0; first < s.kh * s.kw; first += plan.span) {
      const int last = min(first + plan.span, s.kh * s.kw) - 1, products = (last - first + 1) * s.c;
      const Box box = plan.whole ? Box{} : box_of(first, last, s.kw);
      __syncthreads();  // what is there has been read
      for (int i = threadIdx.x; i < products * kChannels; i += blockDim.x) {
        const int r = i / kChannels, k = k0 + i % kChannels;
        const int tap = first + r / s.c, c = r % s.c, kh = tap / s.kw, kw = tap % s.kw;
        const T* const w = static_cast<const T*>(weight.data) + c * weight.c + kh * weight.h + kw * weight.w;
        weights[i] = k < s.k ? to_float(w[k * weight.n]) : 0.f;
        if (i % kChannels == 0) offsets[r] = plan.strip.tap(s, kh - box.h, kw - box.w, c);
      }
      if (threadIdx.x < kChannels) {
        const int k = min(k0 + static_cast<int>(threadIdx.x), s.k - 1);
        factors[threadIdx.x] = film.bias.at(0, k);
        if (bias_copy != nullptr && blockIdx.x == 0) bias_copy[k] = from_float<T>(factors[threadIdx.x]);
        factors[kChannels + threadIdx.x] = film.scale(n, k);
        factors[2 * kChannels + threadIdx.x] = film.beta.at(n, k);
      }
      if (!plan.whole || (k0 == 0 && first == 0))
        load_strip<T>(strip, plan.strip, s, input, n, oh0 * s.sh - s.ph + box.h * s.dh,
                      ow0 * s.sw - s.pw + box.w * s.dw);
      __syncthreads();
      if (s.k - k0 > 4) {
        add_products<8>(sum, weights, offsets, products, strip, position);
      } else if (s.k - k0 > 2) {
        add_products<4>(sum, weights, offsets, products, strip, position);
      } else {
        add_products<2>(sum, weights, offsets, products, strip, position);
      }
    }

    // Bias, activation, FiLM, bits; each output is written once. A sample's positions lie one after another.
    T* const y_plane = static_cast<T*>(output.data) + n * output.n + k0 * output.c;
    uint8_t* const byte_plane = bits == nullptr ? nullptr : bits + n * s.oh * s.ow * row_bytes + k0 / kChannels;
    const auto finish = [&](auto act) {
#pragma unroll
      for (int j = 0; j < kPositions; ++j) {
        const int64_t place = places[j * blockDim.x + threadIdx.x];
        float y[kChannels] = {};
        unsigned byte = 0;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          if (k0 + i >= s.k) continue;
          bool upper;
          y[i] = film(act, sum[j][i] + factors[i], factors[kChannels + i], factors[2 * kChannels + i], upper);
          byte |= static_cast<unsigned>(upper) << i;
        }
        store_channels(y_plane, output.c, place < 0 ? -1 : place * output.w, y, s.k - k0, stage);
        if (place >= 0 && byte_plane != nullptr) byte_plane[place * row_bytes] = static_cast<uint8_t>(byte);
      }
    };
    if constexpr (kSmooth)
      with_activation<MathOf<T>>(film.activation, film.lower_slope, finish);
    else
      finish(PiecewiseLinear{film.lower_slope, film.activation == static_cast<int>(Activation::relu)});
  }
}

}  // namespace

cudaError_t forward(const Problem& p, const ForwardArgs& args, cudaStream_t stream) {
  const Sizes s = sizes_of(p);
  const ForwardPlan plan = plan_of(s, args);
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const auto kernel = p.activation > Activation::leaky_relu ? forward_kernel<T, true> : forward_kernel<T, false>;
    return launch(kernel, static_cast<unsigned>(s.n * plan.tiles.count()), plan.threads, plan.shared_bytes, stream,
                  plan, s, args.input, args.weight, args.output, modulation_of<T>(p, args.bias, args.gamma, args.beta),
                  args.bits, static_cast<T*>(args.bias_copy));
  });
}

}  // namespace film::cuda::direct
