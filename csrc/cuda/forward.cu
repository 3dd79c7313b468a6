// y = gamma * act(conv(x, W) + b) + beta, or act(gamma * (conv(x, W) + b) + beta), and the bits, in one pass: the
// convolution of convolve.cuh, whose rows are positions of all samples, numbered through.
#include "convolve.cuh"
#include "kernels.h"
#include "modulate.cuh"

namespace film::cuda::matrix {
namespace {

template <class T>
struct Params {
  Convolution<T> c;
  T *y, *bias_copy;
  uint8_t* bits;
  Modulation<T> modulate;
};

// Bias, activation, FiLM and bits, eight channels of a position at a time: a byte of bits, and whole packets of y.
template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) forward_kernel(const Params<T> p) {
  const Part<Shape> part(p.c);
  convolve<T, Shape>(p.c, part);
  const float* z = ptx::shared_memory<float>();
  const Place* places = places_of<Shape>();
  constexpr int kEights = Shape::kColumns / 8;
  const int eight = threadIdx.x % kEights, k = part.k0 + eight * 8, all = p.c.s.k;
  const int count = min(8, all - k);
  if (count <= 0) return;
  float bias[8], scale[8], shift[8];
  const int64_t bit_row = (all + 7) / 8;
  int sample = -1;
#pragma unroll
  for (int i = 0; i < 8; ++i) bias[i] = i < count ? p.modulate.bias.at(0, k + i) : 0.f;
  if (p.bias_copy != nullptr && part.first == 0 && threadIdx.x < kEights)
    for (int i = 0; i < count; ++i) p.bias_copy[k + i] = from_float<T>(bias[i]);
  with_activation<MathOf<T>>(p.modulate.activation, p.modulate.lower_slope, [&](auto act) {
    for (int row = threadIdx.x / kEights; row < Shape::kRows; row += Shape::kThreads / kEights) {
      const int64_t position = part.first + row;
      if (position >= part.end) break;
      if (places[row].n != sample) {
        sample = places[row].n;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          scale[i] = i < count ? p.modulate.scale(sample, k + i) : 0.f;
          shift[i] = i < count ? p.modulate.beta.at(sample, k + i) : 0.f;
        }
      }
      float values[8];
      read_eight(z + row * Shape::kPitch + eight * 8, values);
      unsigned byte = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        bool upper;
        values[i] = p.modulate(act, values[i] + bias[i], scale[i], shift[i], upper);
        byte |= (i < count && upper ? 1u : 0u) << i;
      }
      write_eight(p.y + position * all + k, values, count);
      if (p.bits != nullptr) p.bits[position * bit_row + k / 8] = static_cast<uint8_t>(byte);
    }
  });
}

}  // namespace

cudaError_t forward(const Problem& p, const ForwardArgs& args, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Params<T> params{convolution_of<T>(p, args.input.data, args.weight.data), static_cast<T*>(args.output.data),
                           static_cast<T*>(args.bias_copy), args.bits,
                           modulation_of<T>(p, args.bias, args.gamma, args.beta)};
    return with_shape(1, params.c.unit, params.c.s.k, [&](auto shape) {
      using Shape = decltype(shape);
      return start_convolution<Shape>(forward_kernel<T, Shape>, params, kConvolveBytes<Shape>, 1, stream);
    });
  });
}

}  // namespace film::cuda::matrix
