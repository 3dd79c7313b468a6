// Between PyTorch's tensors and what kernels take, for every compiled library.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace film {

using torch::stable::Tensor;

// (N, C, [H,] W) of a tensor; 1d has a height of 1.
inline View view_of(const Tensor& t) {
  const bool flat = t.dim() == 3;
  return {t.data_ptr(), t.stride(0), t.stride(1), flat ? 0 : t.stride(2), t.stride(flat ? 2 : 3)};
}

inline Matrix matrix_of(const std::optional<Tensor>& t) {
  if (!t.has_value()) return {};
  return t->dim() == 1 ? Matrix{t->data_ptr(), 0, t->stride(0)} : Matrix{t->data_ptr(), t->stride(0), t->stride(1)};
}

inline DType dtype_of(const Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, "film_kernels: a dtype that the compiled kernels do not serve");
  }
}

inline int32_t dtype_code(const Tensor& t) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

// A new tensor on `like`'s device, in its dtype or the one given; channels_last where asked for.
inline Tensor allocate(const std::vector<int64_t>& sizes, bool channels_last, const Tensor& like, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  if (channels_last) step = sizes[1];
  for (size_t d = sizes.size(); d-- > 0;) {
    if (channels_last && d == 1) {
      strides[d] = 1;
      continue;
    }
    strides[d] = step;
    step *= sizes[d] > 0 ? sizes[d] : 1;
  }
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device_type, like.get_device_index(),
                                                         &handle));
  return Tensor(handle);
}

inline Tensor allocate(const std::vector<int64_t>& sizes, bool channels_last, const Tensor& like) {
  return allocate(sizes, channels_last, like, dtype_code(like));
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

inline bool is_channels_last(const Tensor& t) {  // of a 4d tensor; a contiguous one is not
  if (t.dim() != 4 || t.is_contiguous()) return false;
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return t.stride(1) == 1 && t.stride(3) == c && t.stride(2) == c * w && t.stride(0) == c * w * h;
}

// geometry: stride, dilation, padding before and output size of the height, the same of the width, then groups,
// activation, position (film_kernels/backends/compiled.py writes them).
inline Problem problem_of(const std::vector<int64_t>& input, const Tensor& weight, DType dtype,
                          const std::vector<int64_t>& geometry, double lower_slope, double gamma_offset) {
  STD_TORCH_CHECK(geometry.size() == 11, "film_kernels: geometry must hold 11 integers");
  const bool flat = input.size() == 3;
  Problem p;
  p.batch = input[0];
  p.in_channels = input[1];
  p.out_channels = weight.size(0);
  p.groups = geometry[8];
  p.h = {flat ? 1 : input[2], flat ? 1 : weight.size(2), geometry[0], geometry[1], geometry[2], geometry[3]};
  p.w = {input[flat ? 2 : 3], weight.size(flat ? 2 : 3), geometry[4], geometry[5], geometry[6], geometry[7]};
  p.dtype = dtype;
  p.activation = static_cast<Activation>(geometry[9]);
  p.position = static_cast<Position>(geometry[10]);
  p.lower_slope = lower_slope;
  p.gamma_offset = gamma_offset;
  return p;
}

inline const uint8_t* bits_of(const Problem& p, const Tensor& bits) {
  return p.activation == Activation::none ? nullptr : static_cast<const uint8_t*>(bits.data_ptr());
}

// What the weight gradient's operator returns; an empty tensor stands for a gradient that is not wanted.
struct WeightGradients {
  Tensor weight, bias, gamma, beta;

  WeightGradients(const Problem& p, const Tensor& input, const Tensor& like_weight, bool channels_last,
                  bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted)
      : weight(weight_wanted ? allocate(sizes_of(like_weight), channels_last, input) : allocate({0}, false, input)),
        bias(allocate({bias_wanted ? p.out_channels : 0}, false, input)),
        gamma(allocate({gamma_wanted ? p.batch : 0, p.out_channels}, false, input)),
        beta(allocate({beta_wanted ? p.batch : 0, p.out_channels}, false, input)) {}

  GradWeightArgs args(const Problem& p, const Tensor& grad, const Tensor& bits, const Tensor& input, const Tensor& w,
                      const std::optional<Tensor>& b, const std::optional<Tensor>& factor) const {
    const auto data = [](const Tensor& t) { return t.numel() > 0 ? t.data_ptr() : nullptr; };
    return {view_of(grad), view_of(input),    view_of(w),       weight.dim() > 1 ? view_of(weight) : View{},
            matrix_of(b),  matrix_of(factor), bits_of(p, bits), data(bias),
            data(gamma),   data(beta)};
  }

  // All zeros, where there are no positions to sum over.
  void zero() {
    for (Tensor* t : {&weight, &bias, &gamma, &beta}) torch::stable::zero_(*t);
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {weight, bias, gamma, beta}; }
};

}  // namespace film
