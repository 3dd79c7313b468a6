// norm_film's tensors, checked, as kernels take them.
#pragma once

#include "norm_problem.h"
#include "tensors.h"

namespace film {

// film_kernels/backends/compiled.py writes both lists of Options: geometry has norm, groups, channel_dim, activation
// and position; numbers has eps, lower_slope and gamma_offset.
struct NormShape {
  NormProblem problem;
  int64_t channel_dim;  // 1, or that of the last dimension

  NormShape(const Argument& input, const Options& options) {
    Reader<int64_t> geometry("geometry", "integers", 5, options.geometry);
    Reader<double> numbers("numbers", "numbers", 3, options.numbers);
    NormProblem& p = problem;
    STD_TORCH_CHECK(input.rank >= 2 && input.rank <= kMostDimensions, "film_kernels: input must have 2 to ",
                    kMostDimensions, " dimensions, got shape ", input.shape());
    const int64_t norm = geometry.next(), groups = geometry.next(), dim = geometry.next();
    STD_TORCH_CHECK(norm >= 0 && norm <= 5, "film_kernels: geometry: norm must be 0 to 5, got ", norm);
    p.norm = static_cast<Norm>(norm);
    STD_TORCH_CHECK(dim == 1 || (dim == -1 && (p.is_of_positions() || p.norm == Norm::none)),
                    "film_kernels: geometry: channel_dim must be 1, or -1 where the norm is of positions, got ", dim);
    channel_dim = dim == 1 ? 1 : input.rank - 1;
    p.batch = input.sizes[0], p.channels = input.sizes[channel_dim], p.positions = 1;
    p.dtype = p.parameter_dtype = dtype_of(input);
    bool fits = true;
    for (int64_t d = 1; d < input.rank; ++d) {
      if (d == channel_dim) continue;
      fits = fits && is_within(kMostElements, {p.positions, input.sizes[d]});
      if (fits) p.positions *= input.sizes[d];
    }
    STD_TORCH_CHECK(fits && is_within(kMostElements, {p.batch, p.channels, p.positions}),
                    "film_kernels: input is too large: ", input.shape());
    STD_TORCH_CHECK(p.channels >= 1, "film_kernels: input must have at least one channel, got shape ", input.shape());
    p.groups = groups;
    STD_TORCH_CHECK(p.norm != Norm::group || (groups >= 1 && p.channels % groups == 0),
                    "film_kernels: geometry: groups must divide the channels of input, ", p.channels, ", got ", groups);
    const int64_t activation = geometry.next(), position = geometry.next();
    STD_TORCH_CHECK(activation >= 0 && activation <= kLastActivation,
                    "film_kernels: geometry: activation must be from 0 to ", kLastActivation, ", got ", activation);
    STD_TORCH_CHECK(position == 0 || position == 1, "film_kernels: geometry: position must be 0 or 1, got ", position);
    p.activation = static_cast<Activation>(activation), p.position = static_cast<Position>(position);
    p.eps = finite("eps", numbers.next());
    STD_TORCH_CHECK(p.eps >= 0, "film_kernels: eps must be at least 0, got ", p.eps);
    p.lower_slope = finite("lower_slope", numbers.next());
    p.gamma_offset = finite("gamma_offset", numbers.next());
  }
};

// A tensor of the input's shape as kernels read it: its positions in one dimension, and channels or positions side by
// side. Where it is laid out in no such way it is copied.
class Positions {
 public:
  Positions(const NormShape& shape, const Tensor& tensor, const Argument& a, bool channels_last) {
    const bool pixels = channels_last || shape.channel_dim != 1 || shape.problem.positions == 1;
    if (seen(shape, a, pixels)) return;
    copy_ = allocate(shape_of(a), channels_last, a.dtype, a);
    copy(*copy_, tensor);
    seen(shape, look_at("a copy", *copy_), pixels);
  }
  const Cube& cube() const { return cube_; }

 private:
  // Whether it can be read so, and how.
  bool seen(const NormShape& shape, const Argument& a, bool pixels) {
    int64_t step = 0, next = 0;  // from a position to the next, and what the stride of the next dimension has to be
    for (int64_t d = a.rank - 1; d >= 1; --d) {
      if (d == shape.channel_dim || a.sizes[d] == 1) continue;
      if (step == 0)
        step = a.strides[d], next = step * a.sizes[d];
      else if (a.strides[d] == next)
        next *= a.sizes[d];
      else
        return false;
      if (step == 0) return false;  // one position expanded to several
    }
    const int64_t of_channel = shape.problem.channels == 1 && pixels ? 1 : a.strides[shape.channel_dim];
    if (pixels ? of_channel != 1 : step != 1) return false;
    cube_ = {a.data, a.strides[0], of_channel, step};
    return true;
  }

  std::optional<Tensor> copy_;
  Cube cube_;
};

// weight and bias (C), gamma and beta (N, C), which an operator was given or not.
struct GivenFactors {
  const std::optional<Tensor>&weight, &bias, &gamma, &beta;
};

// The factors, checked; the problem's parameter_dtype is set from them.
inline NormFactors look_at_factors(NormProblem& p, const GivenFactors& given, const Argument& input) {
  const bool is_half = p.dtype == DType::bf16 || p.dtype == DType::f16;
  bool any = false;
  const auto parameter = [&](const char* name, const std::optional<Tensor>& tensor) -> Matrix {
    if (!tensor.has_value()) return {};
    const Argument a = look_at(name, *tensor);
    check_device(a, input);
    const DType dtype = dtype_of(a);
    STD_TORCH_CHECK(any ? dtype == p.parameter_dtype : dtype == p.dtype || (is_half && dtype == DType::f32),
                    "film_kernels: ", name, " must have the dtype of input, or both weight and bias be of float32");
    any = true, p.parameter_dtype = dtype;
    check_shape(a, {p.channels}, "(C)");
    return {a.data, 0, a.strides[0]};
  };
  NormFactors by;
  by.weight = parameter("weight", given.weight);
  by.bias = parameter("bias", given.bias);
  by.gamma = look_at_factor("gamma", given.gamma, {p.batch, p.channels}, input);
  by.beta = look_at_factor("beta", given.beta, {p.batch, p.channels}, input);
  return by;
}

// The dtype of statistics and sums.
inline int32_t dtype_of_sums(const NormProblem& p) {
  return p.dtype == DType::f64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

inline int32_t dtype_of_parameters(const NormProblem& p, const Argument& input) {
  return p.parameter_dtype == p.dtype ? input.dtype : aoti_torch_dtype_float32();
}

// The statistics that forward kept, dense.
class Statistics {
 public:
  Statistics(const NormProblem& p, const Tensor& kept, const Argument& input) {
    const Argument a = look_at("statistics", kept);
    STD_TORCH_CHECK(a.dtype == dtype_of_sums(p), "film_kernels: statistics must be of the dtype of sums, ",
                    p.dtype == DType::f64 ? "float64" : "float32");
    check_device(a, input);
    check_shape(a, {p.statistics_rows(), p.statistics()}, "(rows, groups)");
    data_ = a.data;
    const bool dense = (a.strides[1] == 1 || a.sizes[1] == 1) && (a.strides[0] == a.sizes[1] || a.sizes[0] == 1);
    if (dense || p.statistics_rows() * p.statistics() == 0) return;
    copy_ = allocate({p.statistics_rows(), p.statistics()}, false, a.dtype, a);
    copy(*copy_, kept);
    data_ = copy_->data_ptr();
  }
  const void* data() const { return data_; }

 private:
  std::optional<Tensor> copy_;
  const void* data_ = nullptr;
};

// Which of the gradients are asked for.
struct NormWanted {
  bool input, weight, bias, gamma, beta;
};

// What the gradients' operator returns; an empty tensor stands for a gradient that is not wanted.
struct NormGradients {
  Tensor input, weight, bias, gamma, beta;

  NormGradients(const NormProblem& p, const Argument& x, const NormWanted& wanted, bool channels_last,
                const FactorSizes& sizes = {})
      : input(wanted.input ? allocate(shape_of(x), channels_last, x.dtype, x) : allocate({0}, false, x.dtype, x)),
        weight(allocate({wanted.weight ? p.channels : 0}, false, dtype_of_parameters(p, x), x)),
        bias(allocate({wanted.bias ? p.channels : 0}, false, dtype_of_parameters(p, x), x)),
        gamma(allocate_gradient("gamma", wanted.gamma, sizes.gamma, p.batch, p.channels, x)),
        beta(allocate_gradient("beta", wanted.beta, sizes.beta, p.batch, p.channels, x)) {}

  NormBackwardArgs args(const Cube& grad, const Cube& x, const Cube& grad_input, const NormFactors& by,
                        const void* statistics) const {
    const auto data = [](const Tensor& t) { return t.numel() > 0 ? t.data_ptr() : nullptr; };
    return {grad, x, grad_input, by, statistics, data(weight), data(bias), data(gamma), data(beta)};
  }

  // All zeros, where there is nothing to sum over.
  void zero() const {
    for (const Tensor* t : {&input, &weight, &bias, &gamma, &beta}) fill_with_zeros(*t);
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> all() const { return {input, weight, bias, gamma, beta}; }
};

}  // namespace film
