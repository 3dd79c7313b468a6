// The operators of the CUDA library: tensors in, the Problem made, kernels started on PyTorch's current stream.
//
// `matrix` chooses the family of kernels (kernels.h). Its tensors have to be dense and begin at a multiple of 16 bytes:
// input and gradient channels_last, the weight with memory (K, kh, kw, C), for grad_input (C, kh, kw, K), and gamma
// with neighbouring channels beside each other. film_kernels/backends/cuda.py sees to it.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../tensors.h"
#include "kernels.h"

namespace film {
namespace {

#ifdef FILM_EMULATED  // tests/emulator: the kernels run on the CPU, on tensors that are there
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};
#else
// Makes the tensor's device the current one; kernels go to the stream that PyTorch uses there.
struct OnDevice {
  int32_t index;
  torch::stable::accelerator::DeviceGuard guard;

  explicit OnDevice(const Tensor& t) : index(t.get_device_index()), guard(index) {}
  cudaStream_t stream() const {
    void* stream;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    return static_cast<cudaStream_t>(stream);
  }
};
#endif

void check(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, "film_kernels: the CUDA kernel ", kernel,
                  " failed: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                   const std::vector<int64_t>& geometry, double lower_slope, double gamma_offset,
                                   bool channels_last, bool matrix, bool keep) {
  const Problem p = problem_of(sizes_of(input), weight, dtype_of(input), geometry, lower_slope, gamma_offset);
  const OnDevice device(input);
  std::vector<int64_t> out{p.batch, p.out_channels};
  if (input.dim() == 4) out.push_back(p.h.out);
  out.push_back(p.w.out);
  const Tensor output = allocate(out, channels_last, input);
  keep = keep && p.activation != Activation::none;
  const Tensor bits = allocate({keep ? p.positions() : 0, p.bit_row()}, false, input, aoti_torch_dtype_uint8());
  if (p.positions() == 0) return {output, bits};
  const ForwardArgs args{view_of(input),
                         view_of(weight),
                         view_of(output),
                         matrix_of(bias),
                         matrix_of(gamma),
                         matrix_of(beta),
                         keep ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr};
  check((matrix ? cuda::matrix::forward : cuda::direct::forward)(p, args, device.stream()), "forward");
  return {output, bits};
}

Tensor grad_input(const Tensor& grad, const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& gamma,
                  const std::vector<int64_t>& input_size, const std::vector<int64_t>& geometry, double lower_slope,
                  double gamma_offset, bool channels_last, bool matrix) {
  const Problem p = problem_of(input_size, weight, dtype_of(grad), geometry, lower_slope, gamma_offset);
  const OnDevice device(grad);
  Tensor result = allocate(input_size, channels_last, grad);
  if (p.positions() == 0) return torch::stable::zero_(result);
  const GradInputArgs args{view_of(grad), view_of(weight), view_of(result), matrix_of(gamma), bits_of(p, bits)};
  check((matrix ? cuda::matrix::grad_input : cuda::direct::grad_input)(p, args, device.stream()), "grad_input");
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grad_weight(const Tensor& grad, const Tensor& bits, const Tensor& input,
                                                       const Tensor& weight, const std::optional<Tensor>& bias,
                                                       const std::optional<Tensor>& gamma, bool weight_wanted,
                                                       bool bias_wanted, bool gamma_wanted, bool beta_wanted,
                                                       const std::vector<int64_t>& geometry, double lower_slope,
                                                       double gamma_offset, bool weight_channels_last, bool matrix) {
  const Problem p = problem_of(sizes_of(input), weight, dtype_of(input), geometry, lower_slope, gamma_offset);
  const OnDevice device(input);
  WeightGradients results(p, input, weight, weight_channels_last, weight_wanted, bias_wanted, gamma_wanted,
                          beta_wanted);
  if (p.positions() == 0) {
    results.zero();
    return results.all();
  }
  const GradWeightArgs args = results.args(p, grad, bits, input, weight, bias, gamma);

  // The sums that the gradients wanted are made of. dgamma looks at sum_p g for its NaN alone (finish.cu).
  const bool post = p.position == Position::post;
  const bool g_for_gamma = gamma_wanted && post && p.activation == Activation::relu;
  const cuda::Cut cut = (matrix ? cuda::matrix::cut_of : cuda::direct::cut_of)(p);
  const int64_t products = p.in_channels * p.h.kernel * p.w.kernel;
  const auto partial = [&](bool wanted, std::vector<int64_t> sizes) {
    return allocate(wanted ? sizes : std::vector<int64_t>{0}, false, input, aoti_torch_dtype_float32());
  };
  const auto data = [](const Tensor& t) { return t.numel() > 0 ? static_cast<float*>(t.data_ptr()) : nullptr; };
  const Tensor of_weight = partial(weight_wanted, {cut.splits, p.out_channels, products});
  const Tensor of_dot = partial(gamma_wanted, {p.batch, cut.dots, p.out_channels});
  const std::vector<int64_t> sums{p.batch, cut.chunks, p.out_channels};
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
      "forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float lower_slope, float gamma_offset, bool channels_last, bool matrix, bool keep) -> (Tensor, Tensor)");
  m.def(
      "grad_input(Tensor grad, Tensor bits, Tensor weight, Tensor? gamma, int[] input_size, int[] geometry, "
      "float lower_slope, float gamma_offset, bool channels_last, bool matrix) -> Tensor");
  m.def(
      "grad_weight(Tensor grad, Tensor bits, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, "
      "bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, int[] geometry, "
      "float lower_slope, float gamma_offset, bool weight_channels_last, bool matrix) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
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
