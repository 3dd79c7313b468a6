// The operators of the passes around a library's convolution (pass_kernels.h), of one, two or three spatial dimensions.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"
#include "pass_kernels.h"
#include "pass_results.h"

namespace film {
namespace {

// Whether elements lie side by side as (N, K, positions), or with channels_last as (N, positions, K).
bool lies(const Argument& a, bool channels_last) {
  int64_t expected = 1;
  const auto next = [&](int64_t d) {
    const bool right = a.sizes[d] == 1 || a.strides[d] == expected;
    expected *= std::max<int64_t>(a.sizes[d], 1);
    return right;
  };
  bool right = !channels_last || next(1);
  for (int64_t d = a.rank; d-- > 2;) right = next(d) && right;
  right = (channels_last || next(1)) && right;
  return next(0) && right;
}

struct PassTensors {
  Argument raw;
  cuda::Pass pass;
  cuda::PassCut cut;

  PassTensors(const Tensor& z, const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
              const std::optional<Tensor>& beta, bool channels_last, int64_t activation, int64_t position,
              double lower_slope, double gamma_offset)
      : raw(look_at("raw", z)) {
    constexpr int64_t kMostOfAxis = int64_t(1) << 30, kMost = int64_t(1) << 40;
    STD_TORCH_CHECK(raw.rank >= 3 && raw.rank <= kMostDimensions,
                    "film_kernels: raw must have shape (N, K, *out) with one to three output sizes, got ", raw.shape());
    pass.dtype = dtype_of(raw);
    STD_TORCH_CHECK(pass.dtype != DType::f64, "film_kernels: raw must be of dtype float32, bfloat16 or float16");
    pass.batch = raw.sizes[0], pass.channels = raw.sizes[1], pass.positions = 1;
    for (int64_t d = 2; d < raw.rank; ++d) {
      STD_TORCH_CHECK(is_within(kMost, {pass.positions, raw.sizes[d]}), "film_kernels: raw is too large");
      pass.positions *= raw.sizes[d];
    }
    STD_TORCH_CHECK(is_within(kMostOfAxis, {pass.batch}) && is_within(kMostOfAxis, {pass.channels}) &&
                        is_within(kMost, {pass.batch, pass.channels, pass.positions}),
                    "film_kernels: raw is too large");
    STD_TORCH_CHECK(activation >= 0 && activation <= kLastActivation, "film_kernels: activation must be from 0 to ",
                    kLastActivation, ", got ", activation);
    STD_TORCH_CHECK(position == 0 || position == 1, "film_kernels: position must be 0 or 1, got ", position);
    pass.activation = static_cast<Activation>(activation);
    pass.post = static_cast<Position>(position) == Position::post;
    pass.lower_slope = finite("lower_slope", lower_slope);
    pass.gamma_offset = finite("gamma_offset", gamma_offset);
    pass.rows = channels_last;
    pass.bias = look_at_factor("bias", bias, {pass.channels}, raw);
    pass.gamma = look_at_factor("gamma", gamma, {pass.batch, pass.channels}, raw);
    pass.beta = look_at_factor("beta", beta, {pass.batch, pass.channels}, raw);
    check_layout(raw);
    if (!empty()) cut = cuda::pass_cut(pass);
  }

  bool empty() const { return pass.batch == 0 || pass.channels == 0 || pass.positions == 0; }

  void check_layout(const Argument& a) const {
    STD_TORCH_CHECK(lies(a, pass.rows), "film_kernels: ", a.name, " must be dense and ",
                    pass.rows ? "channels_last" : "contiguous");
  }

  Argument beside(const char* name, const Tensor& tensor) const {
    const Argument a = look_at(name, tensor);
    check_kind(a, raw);
    check_shape(a, shape_of(raw), "that of raw");
    check_layout(a);
    return a;
  }
};

Tensor pass_forward(const Tensor& raw, const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
                    const std::optional<Tensor>& beta, const Tensor& out, bool channels_last, int64_t activation,
                    int64_t position, double lower_slope, double gamma_offset, const std::optional<Tensor>& bias_copy,
                    const std::optional<Tensor>& beta_copy) {
  const PassTensors t(raw, bias, gamma, beta, channels_last, activation, position, lower_slope, gamma_offset);
  const cuda::Pass& p = t.pass;
  const Argument to = t.beside("out", out);
  const cuda::PassCopies copies{look_at_copy("bias_copy", bias_copy, bias.has_value(), {p.channels}, t.raw),
                                look_at_copy("beta_copy", beta_copy, beta.has_value(), {p.batch, p.channels}, t.raw)};
  if (t.empty()) {
    if (bias_copy.has_value()) copy(*bias_copy, *bias);
    if (beta_copy.has_value()) copy(*beta_copy, *beta);
    return out;
  }
  const OnDevice device(t.raw);
  check(cuda::pass_forward(p, t.cut, t.raw.data, to.data, copies, device.stream()), "pass_forward");
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pass_backward(
    const Tensor& grad, const Tensor& raw, const std::optional<Tensor>& bias, const std::optional<Tensor>& gamma,
    const std::optional<Tensor>& beta, bool raw_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted,
    bool channels_last, int64_t activation, int64_t position, double lower_slope, double gamma_offset) {
  const PassTensors t(raw, bias, gamma, beta, channels_last, activation, position, lower_slope, gamma_offset);
  const cuda::Pass& p = t.pass;
  const Argument g = t.beside("grad", grad);
  const OnDevice device(t.raw);
  const PassResults results(p, shape_of(t.raw), {raw_wanted, bias_wanted, gamma_wanted, beta_wanted}, t.raw);
  if (t.empty())
    results.zero();
  else
    results.fill(t.cut, device.stream(), "pass_backward", [&](void* dz, const cuda::PassSums& sums) {
      return cuda::pass_backward(p, t.cut, g.data, t.raw.data, dz, sums, device.stream());
    });
  return results.all();
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cuda, m) {
  m.def(
      "pass_forward(Tensor raw, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor(a!) out, bool channels_last, "
      "int activation, int position, float lower_slope, float gamma_offset, Tensor(b!)? bias_copy=None, "
      "Tensor(c!)? beta_copy=None) -> Tensor(a!)");
  m.def(
      "pass_backward(Tensor grad, Tensor raw, Tensor? bias, Tensor? gamma, Tensor? beta, bool raw_wanted, "
      "bool bias_wanted, bool gamma_wanted, bool beta_wanted, bool channels_last, int activation, int position, "
      "float lower_slope, float gamma_offset) -> (Tensor, Tensor, Tensor, Tensor)");
}

#ifdef FILM_EMULATED
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CUDA, m) {
#endif
  m.impl("pass_forward", TORCH_BOX(&film::pass_forward));
  m.impl("pass_backward", TORCH_BOX(&film::pass_backward));
}
