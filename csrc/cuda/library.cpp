// The operators of the CUDA library: tensors in, the Problem made, kernels started on PyTorch's current stream.
//
// `matrix` chooses the family of kernels (kernels.h). Its tensors have to be dense and begin at a multiple of 16 bytes:
// input and gradient channels_last, the weight with memory (K, kh, kw, C), for grad_input (C, kh, kw, K), and gamma
// with neighbouring channels beside each other. film_kernels/backends/cuda.py sees to it, but for the weight of
// grad_weight, which decides on the strides of its gradient too and is brought into order here.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../tensors.h"
#include "device.h"
#include "kernels.h"
#include "packets.h"
#include "served.h"

namespace film {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                   bool channels_last, const std::vector<int64_t>& geometry,
                                   const std::vector<double>& numbers, bool matrix, bool keep,
                                   const std::optional<Tensor>& bias_copy) {
  const ForwardTensors t(input, weight, bias, gamma, beta, {geometry, numbers, !keep});
  const Problem& p = t.problem;
  check_served(p, matrix);
  if (matrix) {
    check_channels_last(t.input);
    check_channels_last(t.weight);
    STD_TORCH_CHECK(channels_last, "film_kernels: channels_last must be true for a channels_last input");
  }
  void* const copy_of_bias = look_at_copy("bias_copy", bias_copy, bias.has_value(), {p.out_channels}, t.input);
  const OnDevice device(t.input);
  const Tensor output = allocate(output_shape(p, t.weight), channels_last && t.input.rank == 4, t.input.dtype, t.input);
  keep = keep && p.activation != Activation::none;
  const Tensor bits = allocate_bits(p, keep, t.input);
  if (p.positions() == 0) {
    if (bias_copy.has_value()) copy(*bias_copy, *bias);
    return {output, bits};
  }
  const ForwardArgs args{view_of(t.input),
                         view_of(t.weight),
                         view_of(output),
                         t.bias,
                         t.gamma,
                         t.beta,
                         keep ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr,
                         copy_of_bias};
  check((matrix ? cuda::matrix::forward : cuda::direct::forward)(p, args, device.stream()), "forward");
  return {output, bits};
}

Tensor grad_input(const Tensor& grad, const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& gamma,
                  const std::vector<int64_t>& input_size, bool channels_last, const std::vector<int64_t>& geometry,
                  const std::vector<double>& numbers, bool matrix) {
  const GradInputTensors t(grad, bits, weight, gamma, input_size, {geometry, numbers});
  const Problem& p = t.problem;
  check_served(p, matrix);
  if (matrix) {
    check_channels_last(t.grad);
    STD_TORCH_CHECK(lies_in(t.weight, {1, 2, 3, 0}),
                    "film_kernels: weight must lie in memory as (C, kh, kw, K), dense, "
                    "from a multiple of ",
                    kPacketBytes, " bytes on");
    if (p.positions() > 0) check_rows_of_packets("gamma", t.gamma, p.dtype);
    STD_TORCH_CHECK(channels_last, "film_kernels: channels_last must be true for a channels_last gradient");
  }
  const OnDevice device(t.grad);
  const Tensor result = allocate(t.shape, channels_last && t.shape.rank == 4, t.grad.dtype, t.grad);
  if (p.positions() == 0 || result.numel() == 0) {
    fill_with_zeros(result);
    return result;
  }
  const GradInputArgs args{view_of(t.grad), view_of(t.weight), view_of(result), t.gamma, t.bits};
  check((matrix ? cuda::matrix::grad_input : cuda::direct::grad_input)(p, args, device.stream()), "grad_input");
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grad_weight(const Tensor& grad, const Tensor& bits, const Tensor& input,
                                                       const Tensor& weight, const std::optional<Tensor>& bias,
                                                       const std::optional<Tensor>& gamma, bool weight_wanted,
                                                       bool bias_wanted, bool gamma_wanted, bool beta_wanted,
                                                       const std::vector<int64_t>& geometry,
                                                       const std::vector<double>& numbers, bool matrix) {
  const GradWeightTensors t(grad, bits, input, weight, bias, gamma, {geometry, numbers});
  const Problem& p = t.problem;
  check_served(p, matrix);
  if (matrix) {
    check_channels_last(t.input);
    check_channels_last(t.grad);
  }
  const OnDevice device(t.input);
  const WeightGradients results(p, t.weight, {weight_wanted, bias_wanted, gamma_wanted, beta_wanted});
  if (p.positions() == 0) {
    results.zero();
    return results.all();
  }
  std::optional<Tensor> ordered;
  if (matrix && gamma_wanted && !is_channels_last(t.weight)) {
    ordered = allocate(shape_of(t.weight), true, t.weight.dtype, t.weight);
    copy(*ordered, weight);
  }
  const GradWeightArgs args = results.args(view_of(t.grad), view_of(t.input),
                                           ordered ? view_of(*ordered) : view_of(t.weight), t.bias, t.gamma, t.bits);

  // The sums that the gradients wanted are made of. dgamma looks at sum_p g for its NaN alone (finish.cu).
  const bool post = p.position == Position::post;
  const bool g_for_gamma = gamma_wanted && post && p.activation == Activation::relu;
  const cuda::Cut cut = (matrix ? cuda::matrix::cut_of : cuda::direct::cut_of)(p);
  const int64_t products = p.in_channels * p.h.kernel * p.w.kernel;
  const auto partial = [&](bool wanted, const Shape& shape) {
    return allocate(wanted ? shape : Shape{0}, false, aoti_torch_dtype_float32(), t.input);
  };
  const auto data = [](const Tensor& t) { return t.numel() > 0 ? static_cast<float*>(t.data_ptr()) : nullptr; };
  const Tensor of_weight = partial(weight_wanted, {cut.splits, p.out_channels, products});
  const Tensor of_dot = partial(gamma_wanted, {p.batch, cut.dots, p.out_channels});
  const Shape sums{p.batch, cut.sample_units, p.out_channels};
  const Tensor of_u = partial(bias_wanted || (beta_wanted && !post) || (gamma_wanted && bias.has_value()), sums);
  const Tensor of_g = partial(g_for_gamma || (beta_wanted && post), sums);
  const cuda::Partials partials{data(of_weight), data(of_dot), data(of_u), data(of_g)};
  check((matrix ? cuda::matrix::grad_weight : cuda::direct::grad_weight)(p, args, cut, partials, device.stream()),
        "grad_weight");
  check(cuda::finish(p, args, cut, partials, device.stream()), "finish");
  return results.all();
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY(film_kernels_cuda, m) {
  m.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, bool channels_last, "
      "int[] geometry, float[] numbers, bool matrix, bool keep, Tensor(a!)? bias_copy=None) -> (Tensor, Tensor)");
  m.def(
      "grad_input(Tensor grad, Tensor bits, Tensor weight, Tensor? gamma, int[] input_size, bool channels_last, "
      "int[] geometry, float[] numbers, bool matrix) -> Tensor");
  m.def(
      "grad_weight(Tensor grad, Tensor bits, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, "
      "bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, int[] geometry, "
      "float[] numbers, bool matrix) -> (Tensor, Tensor, Tensor, Tensor)");
}

#ifdef FILM_EMULATED
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CUDA, m) {
#endif
  m.impl("forward", TORCH_BOX(&film::forward));
  m.impl("grad_input", TORCH_BOX(&film::grad_input));
  m.impl("grad_weight", TORCH_BOX(&film::grad_weight));
}
