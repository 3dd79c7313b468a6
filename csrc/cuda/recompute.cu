// dz and the partial sums of a convolution that is computed once more. A tile lies in one sample.
#include "convolve.cuh"
#include "film_gradient.cuh"
#include "modulate.cuh"
#include "recompute.h"

namespace film::cuda {
namespace {

using namespace matrix;

template <class T>
struct Params {
  Convolution<T> c;
  const T* grad;
  T* dz;
  PassSums sums;
  Modulation<T> modulate;
};

template <class T>
__device__ __forceinline__ void load_eight(const T* at, float (&values)[8], int count) {
#pragma unroll
  for (int first = 0; first < 8; first += kPacket<T>) {
    float part[kPacket<T>];
    unpack<T>(read_packet(at + first, first < count), part);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) values[first + i] = part[i];
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) recompute_kernel(const Params<T> p) {
  const Part<Shape> part(p.c);
  convolve<T, Shape>(p.c, part);
  float* shared = ptx::shared_memory<float>();
  constexpr int kEights = Shape::kColumns / 8, kRowsAtOnce = Shape::kThreads / kEights;
  const int eight = threadIdx.x % kEights, first_row = threadIdx.x / kEights, k = part.k0 + eight * 8, all = p.c.s.k;
  const int count = min(8, all - k);
  Sums sums[8];
  if (count > 0) {
    float bias[8], scale[8], shift[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      bias[i] = i < count ? p.modulate.bias.at(0, k + i) : 0.f;
      scale[i] = i < count ? p.modulate.scale(part.unit, k + i) : 0.f;
      shift[i] = i < count ? p.modulate.beta.at(part.unit, k + i) : 0.f;
    }
    with_activation<MathOf<T>>(p.modulate.activation, p.modulate.lower_slope, [&](auto act) {
      for (int row = first_row; row < Shape::kRows; row += kRowsAtOnce) {
        const int64_t position = part.first + row;
        if (position >= part.end) break;
        float raw[8], g[8];
        read_eight(shared + row * Shape::kPitch + eight * 8, raw);
        load_eight(p.grad + position * all + k, g, count);
#pragma unroll
        for (int i = 0; i < 8; ++i)
          g[i] = gradient_of(act, p.modulate.post, g[i], raw[i], bias[i], scale[i], shift[i], sums[i]);
        if (p.dz != nullptr) write_eight(p.dz + position * all + k, g, count);
      }
    });
  }
  // A thread for each channel adds what those of different rows have, in order.
  const int column = threadIdx.x, channel = part.k0 + column % kEights * 8 + column / kEights;
  const auto add = [&](float* sum, float Sums::* kind) {
    if (sum == nullptr) return;
    __syncthreads();  // what was there before has been read
#pragma unroll
    for (int i = 0; i < 8; ++i) shared[first_row * Shape::kColumns + i * kEights + eight] = sums[i].*kind;
    __syncthreads();
    if (column >= Shape::kColumns || channel >= all) return;
    double total = 0;
    for (int row = 0; row < kRowsAtOnce; ++row) total += shared[row * Shape::kColumns + column];
    sum[(part.unit * p.c.unit_tiles + part.tile) * all + channel] = static_cast<float>(total);
  };
  add(p.sums.product, &Sums::product);
  add(p.sums.u, &Sums::u);
  add(p.sums.g, &Sums::g);
}

int64_t positions_of_sample(const Problem& p) { return p.h.out * p.w.out; }

}  // namespace

cudaError_t recompute_cut(const Problem& p, PassCut& cut) {
  const int64_t positions = positions_of_sample(p);
  return with_shape(p.batch, positions, p.out_channels, [&](auto shape) {
    using Shape = decltype(shape);
    cut = {ceil_div(positions, Shape::kRows), Shape::kRows};
    return cudaSuccess;
  });
}

cudaError_t recompute(const Problem& p, const RecomputeArgs& args, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    Params<T> params{convolution_of<T>(p, args.input, args.weight), static_cast<const T*>(args.grad),
                     static_cast<T*>(args.dz), args.sums, modulation_of<T>(p, args.bias, args.gamma, args.beta)};
    params.c.unit = positions_of_sample(p);
    return with_shape(p.batch, params.c.unit, p.out_channels, [&](auto shape) {
      using Shape = decltype(shape);
      return start_convolution<Shape>(recompute_kernel<T, Shape>, params, kConvolveBytes<Shape>, p.batch, stream);
    });
  });
}

}  // namespace film::cuda
