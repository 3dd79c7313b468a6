// norm_film's operators of the CPU library.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "chosen_kernels.h"
#include "norm_tensors.h"

namespace film {
namespace {

std::tuple<Tensor, Tensor> norm_forward(const Tensor& input, const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
                                        const std::optional<Tensor>& beta, const std::vector<int64_t>& geometry,
                                        const std::vector<double>& numbers, bool channels_last) {
  const Argument x = look_at("input", input);
  NormShape shape(x, {geometry, numbers});
  NormProblem& p = shape.problem;
  const NormFactors by = look_at_factors(p, {weight, bias, gamma, beta}, x);
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_backward(
    const Tensor& grad, const Tensor& statistics, const Tensor& input, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
    bool input_wanted, bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted,
    const std::vector<int64_t>& geometry, const std::vector<double>& numbers, bool channels_last) {
  const Argument x = look_at("input", input), g = look_at("grad", grad);
  NormShape shape(x, {geometry, numbers});
  NormProblem& p = shape.problem;
  const NormFactors by = look_at_factors(p, {weight, bias, gamma, beta}, x);
  check_kind(g, x);
  check_shape(g, shape_of(x), "that of input");
  const Statistics kept(p, statistics, x);
  const Kernels& chosen = kernels();
  channels_last = channels_last && x.rank >= 4 && shape.channel_dim == 1;

  const int32_t of_parameters = dtype_of_parameters(p, x);
  const auto rows = [&](bool wanted) { return allocate({wanted ? p.batch : 0, p.channels}, false, x.dtype, x); };
  const auto row = [&](bool wanted) { return allocate({wanted ? p.channels : 0}, false, of_parameters, x); };
  const Tensor grad_input =
      input_wanted ? allocate(shape_of(x), channels_last, x.dtype, x) : allocate({0}, false, x.dtype, x);
  const Tensor grad_weight = row(weight_wanted), grad_bias = row(bias_wanted);
  const Tensor grad_gamma = rows(gamma_wanted), grad_beta = rows(beta_wanted);
  const std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> results{grad_input, grad_weight, grad_bias, grad_gamma,
                                                                   grad_beta};
  if (p.elements() == 0) {
    for (const Tensor* t : {&grad_input, &grad_weight, &grad_bias, &grad_gamma, &grad_beta}) fill_with_zeros(*t);
    return results;
  }
  const Positions in(shape, input, x, channels_last), up(shape, grad, g, channels_last);
  std::optional<Positions> down;
  if (input_wanted) down.emplace(shape, grad_input, look_at("a result", grad_input), channels_last);
  const auto data = [](const Tensor& t) { return t.numel() > 0 ? t.data_ptr() : nullptr; };
  run(chosen.norm_backward, p,
      NormBackwardArgs{up.cube(), in.cube(), down ? down->cube() : Cube{}, by, kept.data(), data(grad_weight),
                       data(grad_bias), data(grad_gamma), data(grad_beta)});
  return results;
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cpu, m) {
  m.def(
      "norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool channels_last=False) -> (Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor grad, Tensor statistics, Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, "
      "Tensor? beta, bool input_wanted, bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, "
      "int[] geometry, float[] numbers, bool channels_last=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cpu, CPU, m) {
  m.impl("norm_forward", TORCH_BOX(&film::norm_forward));
  m.impl("norm_backward", TORCH_BOX(&film::norm_backward));
}
