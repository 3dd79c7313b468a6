// The operators of the CPU library: tensors in, the Problem made, the kernels of the best instruction set called.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "chosen_kernels.h"
#include "packed.h"
#include "packed_options.h"

namespace film {

namespace {

using ConvOptions = PackedOptions<11, 2>;

// y, and where `kept` is asked for what backward needs beside the tensors.
Tensor run_forward(const ForwardTensors& t, bool channels_last, const std::optional<Tensor>& packed,
                   std::optional<Tensor>* kept, bool keep) {
  const Problem& p = t.problem;
  const Kernels& chosen = kernels();
  const auto like_output = [&] {
    return allocate(output_shape(p, t.weight), channels_last && t.input.rank == 4, t.input.dtype, t.input);
  };
  const Tensor output = like_output();
  keep = keep && p.activation != Activation::none;
  const bool keeps_z = keep && !has_slopes_of_bits(p.activation);
  if (kept != nullptr) *kept = keeps_z ? like_output() : allocate_bits(p, keep, t.input);
  if (p.positions() > 0) {
    ForwardArgs args{view_of(t.input), view_of(t.weight), view_of(output), t.bias, t.gamma, t.beta, nullptr};
    args.packed = look_at_packed(packed, t.weight);
    if (keeps_z)
      args.z = (*kept)->data_ptr();
    else if (keep)
      args.bits = static_cast<uint8_t*>((*kept)->data_ptr());
    run(chosen.forward, p, args);
  }
  return output;
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                   const std::vector<int64_t>& geometry, const std::vector<double>& numbers, bool keep,
                                   bool channels_last, const std::optional<Tensor>& packed) {
  const ForwardTensors t(input, weight, bias, gamma, beta, {geometry, numbers, /*smooth=*/true});
  std::optional<Tensor> kept;
  const Tensor output = run_forward(t, channels_last, packed, &kept, keep);
  return {output, *kept};
}

// forward's y, of packed options.
Tensor forward_alone(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta, const Tensor& options) {
  const ConvOptions packed(options);
  const ForwardTensors t(input, weight, bias, gamma, beta, packed.options());
  return run_forward(t, packed.channels_last(), std::nullopt, nullptr, false);
}

// forward_and_copy, of packed options; a copy that nobody asks for is nothing.
std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>> forward_recorded(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
    const std::optional<Tensor>& beta, const Tensor& options, bool copy_bias, bool copy_beta) {
  const ConvOptions packed(options);
  const ForwardTensors t(input, weight, bias, gamma, beta, packed.options());
  std::optional<Tensor> kept;
  const Tensor output = run_forward(t, packed.channels_last(), std::nullopt, &kept, true);
  return {output, *kept, copy_if(copy_bias, bias, t.input), copy_if(copy_beta, beta, t.input)};
}

// forward's results for a backward, and copies of what that will read and nobody saves.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_and_copy(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
    const std::optional<Tensor>& beta, const std::vector<int64_t>& geometry, const std::vector<double>& numbers,
    bool keep, bool channels_last, bool copy_bias, bool copy_beta) {
  auto [output, kept] = forward(input, weight, bias, gamma, beta, geometry, numbers, keep, channels_last, std::nullopt);
  const Argument x = look_at("input", input);
  return {output, kept, copy_of(bias, copy_bias, x), copy_of(beta, copy_beta, x)};
}

// What `forward` takes as `packed`: the weight as it reads it for an input of that size.
Tensor pack(const Tensor& weight, const std::vector<int64_t>& input_size, const std::vector<int64_t>& geometry,
            const std::vector<double>& numbers) {
  const Argument w = look_at_weight(weight, look_at("weight", weight));
  const Shape shape = input_shape("input_size", input_size.data(), static_cast<int64_t>(input_size.size()), w);
  const Problem p = problem_of(shape, w, {geometry, numbers, /*smooth=*/true});
  PackedWeight packing = kernels().packing(p, view_of(w));
  const Tensor made = allocate_packed(packing, w);
  if (packing.elements > 0) run(kernels().pack, p, PackArgs{view_of(w), packing.data});
  return made;
}

Tensor grad_input(const Tensor& grad, const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& gamma,
                  const std::vector<int64_t>& input_size, bool channels_last, const std::vector<int64_t>& geometry,
                  const std::vector<double>& numbers) {
  const GradInputTensors t(grad, bits, weight, gamma, input_size, {geometry, numbers});
  const Kernels& chosen = kernels();
  const Tensor result = allocate(t.shape, channels_last && t.shape.rank == 4, t.grad.dtype, t.grad);
  if (t.problem.positions() == 0 || result.numel() == 0)
    fill_with_zeros(result);
  else
    run(chosen.grad_input, t.problem,
        GradInputArgs{view_of(t.grad), view_of(t.weight), view_of(result), t.gamma, t.bits});
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grad_weight(
    const Tensor& grad, const Tensor& bits, const Tensor& input, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma, bool weight_wanted, bool bias_wanted,
    bool gamma_wanted, bool beta_wanted, const std::vector<int64_t>& geometry, const std::vector<double>& numbers,
    const std::vector<int64_t>& gamma_size, const std::vector<int64_t>& beta_size) {
  const GradWeightTensors t(grad, bits, input, weight, bias, gamma, {geometry, numbers});
  const Kernels& chosen = kernels();
  const WeightGradients results(t.problem, t.weight, {weight_wanted, bias_wanted, gamma_wanted, beta_wanted},
                                {gamma_size, beta_size});
  if (t.problem.positions() == 0)
    results.zero();
  else if (weight_wanted || bias_wanted || gamma_wanted || beta_wanted)
    run(chosen.grad_weight, t.problem,
        results.args(view_of(t.grad), view_of(t.input), view_of(t.weight), t.bias, t.gamma, t.bits));
  return results.all();
}

// Both at once; an empty tensor stands for a gradient that is not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& bits, const Tensor& input,
                                                            const Tensor& weight, const std::optional<Tensor>& bias,
                                                            const std::optional<Tensor>& gamma, bool input_wanted,
                                                            bool weight_wanted, bool bias_wanted, bool gamma_wanted,
                                                            bool beta_wanted, const std::vector<int64_t>& geometry,
                                                            const std::vector<double>& numbers, bool channels_last,
                                                            const std::vector<int64_t>& gamma_size,
                                                            const std::vector<int64_t>& beta_size) {
  const Argument x = look_at("input", input);
  const std::vector<int64_t> input_size(x.sizes, x.sizes + x.rank);
  const Tensor dx = input_wanted ? grad_input(grad, bits, weight, gamma, input_size, channels_last, geometry, numbers)
                                 : allocate({0}, false, x.dtype, x);
  auto [dw, db, dgamma, dbeta] = grad_weight(grad, bits, input, weight, bias, gamma, weight_wanted, bias_wanted,
                                             gamma_wanted, beta_wanted, geometry, numbers, gamma_size, beta_size);
  return {dx, dw, db, dgamma, dbeta};
}

// From how many output positions on the kernels here serve a layer of these sizes faster than PyTorch's own convolution
// with passes after it does: 0 for always, the largest number for never. Batch and maps are left out of what is asked,
// so that whoever traces with symbolic ones has a number to compare them with.
int64_t fewest_positions(const std::vector<int64_t>& weight_size, torch::headeronly::ScalarType dtype,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& dilation,
                         const std::vector<int64_t>& padding, int64_t groups, bool channels_last, int64_t use,
                         bool small_sample) {
  const size_t rank = stride.size();
  STD_TORCH_CHECK(
      (rank == 1 || rank == 2) && dilation.size() == rank && padding.size() == rank && weight_size.size() == rank + 2,
      "film_kernels: weight_size must have 3 or 4 sizes, and stride, dilation and padding one or two");
  STD_TORCH_CHECK(use >= 0 && use <= static_cast<int64_t>(Use::alone_packed),
                  "film_kernels: use must be 0, 1 or 2, got ", use);
  STD_TORCH_CHECK(groups >= 1 && weight_size[0] % groups == 0, "film_kernels: groups must divide weight_size[0], ",
                  weight_size[0], ", got ", groups);
  int64_t elements = groups;
  for (int64_t size : weight_size)
    STD_TORCH_CHECK(size >= 1 && !__builtin_mul_overflow(elements, size, &elements),
                    "film_kernels: weight_size must hold sizes of at least 1 whose product can be counted, got ",
                    text_of(weight_size.data(), rank + 2));
  Problem p{};
  p.groups = groups, p.out_channels = weight_size[0], p.in_channels = weight_size[1] * groups;
  p.dtype = dtype_of({"weight", 0, nullptr, nullptr, static_cast<int32_t>(dtype), 0, 0, nullptr});
  const auto axis = [&](size_t d) { return Axis{1, weight_size[d + 2], stride[d], dilation[d], padding[d], 1}; };
  p.h = rank == 2 ? axis(0) : Axis{1, 1, 1, 1, 0, 1};
  p.w = axis(rank - 1);
  const auto faster_from = [&](int64_t positions) {
    p.batch = positions;
    return !kernels().library_is_faster(p, {static_cast<Use>(use), channels_last, small_sample});
  };
  int64_t slow = -1, fast = kMostAlong;  // more positions never make the kernels here the slower ones
  if (!faster_from(fast)) return std::numeric_limits<int64_t>::max();
  while (fast - slow > 1) {
    const int64_t middle = slow + (fast - slow) / 2;
    (faster_from(middle) ? fast : slow) = middle;
  }
  return fast;
}

// "avx512 of avx512, avx2, baseline": the one in use, and all that were built.
std::string instruction_sets() { return kernels().name + (" of " + built_sets()); }

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY(film_kernels_cpu, m) {
  m.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool keep, bool channels_last=False, Tensor? packed=None) -> (Tensor, Tensor)");
  m.def(
      "forward_and_copy(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool keep, bool channels_last, bool copy_bias, bool copy_beta) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def(
      "forward_alone(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor options) -> "
      "Tensor");
  m.def(
      "forward_recorded(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor options, "
      "bool copy_bias, bool copy_beta) -> (Tensor, Tensor, Tensor?, Tensor?)");
  m.def("pack(Tensor weight, int[] input_size, int[] geometry, float[] numbers) -> Tensor");
  m.def(
      "grad_input(Tensor grad, Tensor bits, Tensor weight, Tensor? gamma, int[] input_size, bool channels_last, "
      "int[] geometry, float[] numbers) -> Tensor");
  m.def(
      "grad_weight(Tensor grad, Tensor bits, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, "
      "bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, int[] geometry, "
      "float[] numbers, int[] gamma_size=[], int[] beta_size=[]) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "backward(Tensor grad, Tensor bits, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, bool input_wanted, "
      "bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, int[] geometry, float[] numbers, "
      "bool channels_last=False, int[] gamma_size=[], int[] beta_size=[]) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fewest_positions(int[] weight_size, ScalarType dtype, int[] stride, int[] dilation, int[] padding, int groups, "
      "bool channels_last, int use=0, bool small_sample=False) -> int");
  m.def("instruction_sets() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&film::forward));
  m.impl("forward_and_copy", TORCH_BOX(&film::forward_and_copy));
  m.impl("forward_alone", TORCH_BOX(&film::forward_alone));
  m.impl("forward_recorded", TORCH_BOX(&film::forward_recorded));
  m.impl("pack", TORCH_BOX(&film::pack));
  m.impl("grad_input", TORCH_BOX(&film::grad_input));
  m.impl("grad_weight", TORCH_BOX(&film::grad_weight));
  m.impl("backward", TORCH_BOX(&film::backward));
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("fewest_positions", TORCH_BOX(&film::fewest_positions));
  m.impl("instruction_sets", TORCH_BOX(&film::instruction_sets));
}
