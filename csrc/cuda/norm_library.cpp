// norm_film's operators of the CUDA library: tensors in, checked, and kernels started on PyTorch's current stream.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../norm_tensors.h"
#include "device.h"
#include "norm_kernels.h"

namespace film {
namespace {

// What the kernels take for granted beside what every library checks: samples and channels are counted in 32 bits.
void check_served(const NormProblem& p) {
  STD_TORCH_CHECK(p.dtype != DType::f64, "film_kernels: input must be of dtype float32, bfloat16 or float16");
  STD_TORCH_CHECK(is_within(int64_t(1) << 37, {p.batch, p.channels, p.positions}) &&
                      is_within(int64_t(1) << 30, {p.batch, p.channels}),
                  "film_kernels: input is too large");
}

cuda::NormLimits limits_of(const std::vector<int64_t>& limits) {
  STD_TORCH_CHECK(limits.empty() || limits.size() == 3, "film_kernels: limits must be none or three, got ",
                  limits.size());
  cuda::NormLimits found;
  if (limits.empty()) return found;
  for (const int64_t limit : limits)
    STD_TORCH_CHECK(limit >= 0, "film_kernels: limits must be at least 0, got ", limit);
  return {std::min(limits[0], found.held), std::clamp<int64_t>(limits[1], 1, found.steps),
          std::clamp<int64_t>(limits[2], 1, found.units)};
}

bool are_pixels(const NormShape& shape, bool channels_last) {
  return channels_last || shape.channel_dim != 1 || shape.problem.positions == 1;
}

// Blocks, and what is kept of each chunk, are counted in 32 bits.
void check_blocks(const NormProblem& p, const cuda::NormCut& cut) {
  STD_TORCH_CHECK(cut.blocks <= 0x7fffffff && is_within(0x7fffffff, {p.batch, p.channels, cut.chunks}),
                  "film_kernels: input is too large");
}

std::tuple<Tensor, Tensor> norm_forward(const Tensor& input, const std::optional<Tensor>& weight,
                                        const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
                                        const std::optional<Tensor>& beta, const std::vector<int64_t>& geometry,
                                        const std::vector<double>& numbers, bool channels_last,
                                        const std::vector<int64_t>& limits) {
  const Argument x = look_at("input", input);
  NormShape shape(x, {geometry, numbers});
  NormProblem& p = shape.problem;
  check_served(p);
  const NormFactors by = look_at_factors(p, {weight, bias, gamma, beta}, x);
  const cuda::NormLimits allowed = limits_of(limits);
  const OnDevice device(x);
  channels_last = channels_last && x.rank >= 4 && shape.channel_dim == 1;
  const Tensor output = allocate(shape_of(x), channels_last, x.dtype, x);
  const Tensor statistics = allocate({p.statistics_rows(), p.statistics()}, false, dtype_of_sums(p), x);
  if (p.elements() == 0) {
    fill_with_zeros(statistics);
    return {output, statistics};
  }
  const Positions in(shape, input, x, channels_last);
  const Positions out(shape, output, look_at("a result", output), channels_last);
  const NormForwardArgs args{in.cube(), out.cube(), by, statistics.data_ptr()};
  const bool pixels = are_pixels(shape, channels_last);
  const cuda::NormCut cut =
      cuda::norm_cut(p, pixels, cuda::norm_vector(p, pixels, {&args.input, &args.output}), allowed);
  check_blocks(p, cut);
  if (p.is_of_positions()) {
    check(cuda::norm_forward_across(p, args, cut, device.stream()), "norm_forward_across");
    return {output, statistics};
  }
  const bool split = p.norm != Norm::none && !cut.fused;
  const Tensor moments =
      allocate({split ? 3 : 0, p.batch * p.channels, cut.chunks}, false, aoti_torch_dtype_float32(), x);
  check(cuda::norm_forward(p, args, cut, static_cast<float*>(moments.data_ptr()), device.stream()), "norm_forward");
  return {output, statistics};
}

// How forward would share out an input of this kind: whether a block has all of a group, elements moved at once, chunks
// of a sample's positions, and blocks.
std::vector<int64_t> norm_forward_cut(const Tensor& input, const std::vector<int64_t>& geometry,
                                      const std::vector<double>& numbers, bool channels_last,
                                      const std::vector<int64_t>& limits) {
  const Argument x = look_at("input", input);
  const NormShape shape(x, {geometry, numbers});
  check_served(shape.problem);
  channels_last = channels_last && x.rank >= 4 && shape.channel_dim == 1;
  if (shape.problem.elements() == 0) return {0, 0, 0, 0};
  const Positions in(shape, input, x, channels_last);
  const bool pixels = are_pixels(shape, channels_last);
  const cuda::NormCut cut =
      cuda::norm_cut(shape.problem, pixels, cuda::norm_vector(shape.problem, pixels, {&in.cube()}), limits_of(limits));
  return {cut.fused, cut.vector, cut.chunks, cut.blocks};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_backward(
    const Tensor& grad, const Tensor& statistics, const Tensor& input, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
    bool input_wanted, bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted,
    const std::vector<int64_t>& geometry, const std::vector<double>& numbers, bool channels_last,
    const std::vector<int64_t>& limits) {
  const Argument x = look_at("input", input), g = look_at("grad", grad);
  NormShape shape(x, {geometry, numbers});
  NormProblem& p = shape.problem;
  check_served(p);
  const NormFactors by = look_at_factors(p, {weight, bias, gamma, beta}, x);
  check_kind(g, x);
  check_shape(g, shape_of(x), "that of input");
  cuda::NormLimits allowed = limits_of(limits);
  allowed.held = 0;  // nothing is held backward
  const OnDevice device(x);
  const Statistics kept(p, statistics, x);
  channels_last = channels_last && x.rank >= 4 && shape.channel_dim == 1;
  const NormGradients results(p, x, {input_wanted, weight_wanted, bias_wanted, gamma_wanted, beta_wanted},
                              channels_last);
  if (p.elements() == 0) {
    results.zero();
    return results.all();
  }
  const Positions in(shape, input, x, channels_last), up(shape, grad, g, channels_last);
  std::optional<Positions> down;
  if (input_wanted) down.emplace(shape, results.input, look_at("a result", results.input), channels_last);
  const NormBackwardArgs args = results.args(up.cube(), in.cube(), down ? down->cube() : Cube{}, by, kept.data());
  const bool pixels = are_pixels(shape, channels_last);
  const Cube& written = down ? args.grad_input : args.input;
  const cuda::NormCut cut =
      cuda::norm_cut(p, pixels, cuda::norm_vector(p, pixels, {&args.input, &args.grad, &written}), allowed);
  check_blocks(p, cut);

  const bool terms_wanted = input_wanted && p.norm != Norm::none && !p.is_of_positions() && !p.is_constant();
  const auto number = [&](const Tensor& t) { return t.numel() > 0 ? static_cast<float*>(t.data_ptr()) : nullptr; };
  const Tensor terms = allocate({terms_wanted ? 2 : 0, p.statistics()}, false, aoti_torch_dtype_float32(), x);
  if (args.sums_wanted() || terms_wanted) {
    const bool of_gamma = gamma_wanted && p.position == Position::pre && by.bias.data != nullptr;
    const bool post = p.position == Position::post && (gamma_wanted || beta_wanted);
    const int kinds = post ? 4 : of_gamma ? 3 : 2;
    const Tensor sums = allocate({kinds, p.batch * p.channels, cut.chunks}, false, aoti_torch_dtype_float32(), x);
    check(cuda::norm_sums(p, args, cut, {number(sums), kinds}, device.stream()), "norm_sums");
    check(cuda::norm_finish(p, args, cut, {number(sums), kinds}, number(terms), device.stream()), "norm_finish");
  }
  if (input_wanted && p.is_of_positions())
    check(cuda::norm_grad_input_across(p, args, cut, device.stream()), "norm_grad_input_across");
  else if (input_wanted)
    check(cuda::norm_grad_input(p, args, cut, number(terms), device.stream()), "norm_grad_input");
  return results.all();
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cuda, m) {
  m.def(
      "norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool channels_last=False, int[] limits=[]) -> (Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor grad, Tensor statistics, Tensor input, Tensor? weight, Tensor? bias, Tensor? gamma, "
      "Tensor? beta, bool input_wanted, bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, "
      "int[] geometry, float[] numbers, bool channels_last=False, int[] limits=[]) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "norm_forward_cut(Tensor input, int[] geometry, float[] numbers, bool channels_last=False, int[] limits=[]) -> "
      "int[]");
}

#ifdef FILM_EMULATED
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CUDA, m) {
#endif
  m.impl("norm_forward", TORCH_BOX(&film::norm_forward));
  m.impl("norm_backward", TORCH_BOX(&film::norm_backward));
  m.impl("norm_forward_cut", TORCH_BOX(&film::norm_forward_cut));
}
