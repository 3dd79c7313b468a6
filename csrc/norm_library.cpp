// norm_film's operators of the CPU library.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "chosen_kernels.h"
#include "norm_tensors.h"
#include "packed_options.h"

namespace film {
namespace {

using NormOptions = PackedOptions<5, 3>;

std::tuple<Tensor, Tensor> run_forward(const Tensor& input, const Argument& x, const GivenFactors& given,
                                       const Options& options, bool channels_last) {
  NormShape shape(x, options);
  NormProblem& p = shape.problem;
  const NormFactors by = look_at_factors(p, given, x);
  const Kernels& chosen = kernels();
  channels_last = channels_last && x.rank >= 4 && shape.channel_dim == 1;
  const Tensor output = allocate(shape_of(x), channels_last, x.dtype, x);
  const Tensor statistics = allocate({p.statistics_rows(), p.statistics()}, false, dtype_of_sums(p), x);
  if (p.elements() == 0) {
    fill_with_zeros(statistics);
    return {output, statistics};
  }
  const Positions in(shape, input, x, channels_last);
  const Positions out(shape, output, look_at("a result", output), channels_last);
  run(chosen.norm_forward, p, NormForwardArgs{in.cube(), out.cube(), by, statistics.data_ptr()});
  return {output, statistics};
}

std::tuple<Tensor, Tensor> norm_forward(const Tensor& input, const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
                                        const std::optional<Tensor>& beta, const std::vector<int64_t>& geometry,
                                        const std::vector<double>& numbers, bool channels_last) {
  return run_forward(input, look_at("input", input), {weight, bias, gamma, beta}, {geometry, numbers}, channels_last);
}

// norm_forward's y, of packed options.
Tensor norm_forward_alone(const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                          const Tensor& options) {
  const NormOptions packed(options);
  const Argument x = look_at("input", input);
  return std::get<0>(run_forward(input, x, {weight, bias, gamma, beta}, packed.options(), packed.channels_last()));
}

// norm_forward_and_copy, of packed options; a copy that nobody asks for is nothing.
std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>> norm_forward_recorded(
    const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta, const Tensor& options, bool copy_bias,
    bool copy_beta) {
  const NormOptions packed(options);
  const Argument x = look_at("input", input);
  auto [output, statistics] =
      run_forward(input, x, {weight, bias, gamma, beta}, packed.options(), packed.channels_last());
  return {output, statistics, copy_if(copy_bias, bias, x), copy_if(copy_beta, beta, x)};
}

// norm_forward's results, and copies of what backward will read and nobody saves.
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_forward_and_copy(
    const Tensor& input, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta, const std::vector<int64_t>& geometry,
    const std::vector<double>& numbers, bool channels_last, bool copy_bias, bool copy_beta) {
  auto [output, statistics] = norm_forward(input, weight, bias, gamma, beta, geometry, numbers, channels_last);
  const Argument x = look_at("input", input);
  return {output, statistics, copy_of(bias, copy_bias, x), copy_of(beta, copy_beta, x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_backward(
    const Tensor& grad, const Tensor& statistics, const Tensor& input, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
    bool input_wanted, bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted,
    const std::vector<int64_t>& geometry, const std::vector<double>& numbers, bool channels_last,
    const std::vector<int64_t>& gamma_size, const std::vector<int64_t>& beta_size) {
  const Argument x = look_at("input", input), g = look_at("grad", grad);
  NormShape shape(x, {geometry, numbers});
  NormProblem& p = shape.problem;
  const NormFactors by = look_at_factors(p, {weight, bias, gamma, beta}, x);
  check_kind(g, x);
  check_shape(g, shape_of(x), "that of input");
  const Statistics kept(p, statistics, x);
  const Kernels& chosen = kernels();
  channels_last = channels_last && x.rank >= 4 && shape.channel_dim == 1;

  const NormGradients results(p, x, {input_wanted, weight_wanted, bias_wanted, gamma_wanted, beta_wanted},
                              channels_last, {gamma_size, beta_size});
  if (p.elements() == 0) {
    results.zero();
    return results.all();
  }
  const Positions in(shape, input, x, channels_last), up(shape, grad, g, channels_last);
  std::optional<Positions> down;
  if (input_wanted) down.emplace(shape, results.input, look_at("a result", results.input), channels_last);
  run(chosen.norm_backward, p, results.args(up.cube(), in.cube(), down ? down->cube() : Cube{}, by, kept.data()));
  return results.all();
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cpu, m) {
  m.def(
      "norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool channels_last=False) -> (Tensor, Tensor)");
  m.def(
      "norm_forward_and_copy(Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool channels_last, bool copy_bias, bool copy_beta) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "norm_forward_alone(Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor options) -> "
      "Tensor");
  m.def(
      "norm_forward_recorded(Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor options, "
      "bool copy_bias, bool copy_beta) -> (Tensor, Tensor, Tensor?, Tensor?)");
  m.def(
      "norm_backward(Tensor grad, Tensor statistics, Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, "
      "Tensor? beta, bool input_wanted, bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, "
      "int[] geometry, float[] numbers, bool channels_last=False, int[] gamma_size=[], int[] beta_size=[]) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cpu, CPU, m) {
  m.impl("norm_forward", TORCH_BOX(&film::norm_forward));
  m.impl("norm_forward_and_copy", TORCH_BOX(&film::norm_forward_and_copy));
  m.impl("norm_forward_alone", TORCH_BOX(&film::norm_forward_alone));
  m.impl("norm_forward_recorded", TORCH_BOX(&film::norm_forward_recorded));
  m.impl("norm_backward", TORCH_BOX(&film::norm_backward));
}
