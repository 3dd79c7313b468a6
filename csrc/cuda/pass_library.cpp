// The operators of the passes around a library's convolution (pass_kernels.h), of one, two or three spatial dimensions.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "device.h"
#include "pass_kernels.h"

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
    STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::mish),
                    "film_kernels: activation must be from 0 to 8, got ", activation);
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
                    int64_t position, double lower_slope, double gamma_offset) {
  const PassTensors t(raw, bias, gamma, beta, channels_last, activation, position, lower_slope, gamma_offset);
  const Argument to = t.beside("out", out);
  if (t.empty()) return out;
  const OnDevice device(t.raw);
  check(cuda::pass_forward(t.pass, t.cut, t.raw.data, to.data, device.stream()), "pass_forward");
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
  const auto result = [&](bool wanted, const Shape& shape) {
    return allocate(wanted ? shape : Shape{0}, channels_last && wanted && shape.rank > 2, t.raw.dtype, t.raw);
  };
  const Tensor dz = result(raw_wanted, shape_of(t.raw)), db = result(bias_wanted, {p.channels}),
               dgamma = result(gamma_wanted, {p.batch, p.channels}), dbeta = result(beta_wanted, {p.batch, p.channels});
  const std::tuple<Tensor, Tensor, Tensor, Tensor> results{dz, db, dgamma, dbeta};
  if (t.empty()) {
    for (const Tensor* each : {&dz, &db, &dgamma, &dbeta}) fill_with_zeros(*each);
    return results;
  }
  const auto partial = [&](bool wanted) {
    return allocate(wanted ? Shape{p.batch, t.cut.splits, p.channels} : Shape{0}, false, aoti_torch_dtype_float32(),
                    t.raw);
  };
  const auto data = [](const Tensor& made) { return made.numel() > 0 ? made.data_ptr() : nullptr; };
  const Tensor of_product = partial(gamma_wanted), of_u = partial(bias_wanted || (beta_wanted && !p.post)),
               of_g = partial(beta_wanted && p.post);
  const auto sum = [&](const Tensor& made) { return static_cast<float*>(data(made)); };
  const cuda::PassSums sums{sum(of_product), sum(of_u), sum(of_g)};
  check(cuda::pass_backward(p, t.cut, g.data, t.raw.data, data(dz), sums, device.stream()), "pass_backward");
  if (bias_wanted || gamma_wanted || beta_wanted)
    check(cuda::pass_finish(p, t.cut, sums, {data(db), data(dgamma), data(dbeta)}, device.stream()), "pass_finish");
  return results;
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cuda, m) {
  m.def(
      "pass_forward(Tensor raw, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor(a!) out, bool channels_last, "
      "int activation, int position, float lower_slope, float gamma_offset) -> Tensor(a!)");
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
