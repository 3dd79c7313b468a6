// The Problem in C++: sizes, layouts and options of one convolution + activation + FiLM.
#pragma once

#include <cstdint>

namespace film {

enum class DType { f32, f64, bf16, f16 };
// In the order of film_kernels/activations.py. Of the first three, which are piecewise linear, bits can be kept.
enum class Activation { none, relu, leaky_relu, silu, gelu, gelu_tanh, sigmoid, tanh, mish, elu };
constexpr int64_t kLastActivation = static_cast<int64_t>(Activation::elu);
enum class Position { post, pre };

// Whether a bit of each element tells the slope of the activation there.
inline bool has_slopes_of_bits(Activation a) {
  return a == Activation::none || a == Activation::relu || a == Activation::leaky_relu;
}

// One spatial dimension of the convolution.
struct Axis {
  int64_t in, kernel, stride, dilation, pad, out;
};

struct Problem {
  int64_t batch;         // N
  int64_t in_channels;   // C
  int64_t out_channels;  // K
  int64_t groups;
  Axis h, w;
  DType dtype;
  Activation activation;
  Position position;
  double lower_slope;  // what the activation multiplies by on its lower branch
  double gamma_offset;

  int64_t group_in() const { return in_channels / groups; }
  int64_t group_out() const { return out_channels / groups; }
  int64_t positions() const { return batch * h.out * w.out; }
  int64_t bit_row() const { return (out_channels + 7) / 8; }  // bytes of bits at one position
};

// A tensor (N, C, H, W), or a weight (K, C/groups, kh, kw), by its strides in elements: any view will do.
struct View {
  void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
};

// A tensor (N, K) or (K), or nothing.
struct Matrix {
  const void* data = nullptr;
  int64_t n = 0, k = 0;
};

// A weight as forward reads it, made beforehand by the kernels' own `pack`: `elements` of the type that sums are in,
// arranged as `way` says.
struct PackedWeight {
  void* data = nullptr;
  int64_t way = 0, elements = 0;
};

struct PackArgs {
  View weight;
  void* data;  // of a PackedWeight
};

// What each of the three kernels reads and writes.
struct ForwardArgs {
  View input, weight, output;
  Matrix bias, gamma, beta;
  uint8_t* bits;              // (N * positions, ceil(K / 8)), or null where no gradient will be asked for
  void* bias_copy = nullptr;  // (K), dense: where the bias goes too, on a GPU
  PackedWeight packed = {};   // the weight once more, or nothing
  void* z = nullptr;          // conv(x, W) + b, laid out as output is, where that is kept in place of bits, on a CPU
};

struct GradInputArgs {
  View grad, weight, grad_input;
  Matrix gamma;
  const uint8_t* bits;
};

struct GradWeightArgs {
  View grad, input, weight, grad_weight;  // grad_weight.data is null where it is not wanted
  Matrix bias, gamma;
  const uint8_t* bits;
  void *grad_bias, *grad_gamma, *grad_beta;  // contiguous, or null where not wanted

  // Whether anything is asked for that takes products with the input: dW, or dgamma = <W, U> + ...
  bool products_wanted() const { return grad_weight.data != nullptr || grad_gamma != nullptr; }
};

}  // namespace film
