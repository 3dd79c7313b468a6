// Between PyTorch's tensors and what kernels take, for every compiled library.
#pragma once

#include <cstring>
#include <tuple>

#include "checks.h"

namespace film {

// (N, C, [H,] W) of a tensor; 1d has a height of 1.
inline View view_of(const Argument& a) {
  const bool flat = a.rank == 3;
  return {a.data, a.strides[0], a.strides[1], flat ? 0 : a.strides[2], a.strides[flat ? 2 : 3]};
}
inline View view_of(const Tensor& made) { return view_of(look_at("a result", made)); }

// A new tensor on `like`'s device.
inline Tensor allocate(const Shape& shape, const int64_t* strides, int32_t dtype, const Argument& like) {
  AtenTensorHandle handle;
  const AOTITorchError code =
      aoti_torch_empty_strided(shape.rank, shape.sizes, strides, dtype, like.device_type, like.device, &handle);
  if (code != AOTI_TORCH_SUCCESS) {  // an older PyTorch does not say how much it was
    int64_t count = 1;
    for (int64_t d = 0; d < shape.rank; ++d) count *= shape.sizes[d];
    call(code,
         ("allocate " + std::to_string(count * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype))) + " bytes")
             .c_str());
  }
  return Tensor(handle);
}

// Dense, channels_last where asked for.
inline Tensor allocate(const Shape& shape, bool channels_last, int32_t dtype, const Argument& like) {
  int64_t strides[kMostDimensions], step = channels_last ? std::max<int64_t>(shape.sizes[1], 1) : 1;
  for (int64_t d = shape.rank; d-- > 0;) {
    if (channels_last && d == 1) {
      strides[d] = 1;
      continue;
    }
    strides[d] = step;
    step *= std::max<int64_t>(shape.sizes[d], 1);
  }
  return allocate(shape, strides, dtype, like);
}

inline Shape shape_of(const Argument& a) {
  Shape shape{};
  shape.rank = a.rank;
  std::copy(a.sizes, a.sizes + a.rank, shape.sizes);
  return shape;
}

// Where a copy of a factor goes, contiguous, or null where none is asked for.
inline void* look_at_copy(const char* name, const std::optional<Tensor>& copy, bool is_there, const Shape& shape,
                          const Argument& like) {
  if (!copy.has_value()) return nullptr;
  STD_TORCH_CHECK(is_there, "film_kernels: ", name, " is given, and nothing that could be copied");
  const Argument a = look_at(name, *copy);
  check_kind(a, like);
  check_shape(a, shape, shape.rank == 1 ? "(K)" : "(N, K)");
  int64_t expected = 1;
  for (int64_t d = a.rank; d-- > 0; expected *= a.sizes[d])
    STD_TORCH_CHECK(a.sizes[d] == 1 || a.strides[d] == expected, "film_kernels: ", name, " must be contiguous");
  return a.data;
}

// Whether its elements lie side by side in memory, in some order of the dimensions.
inline bool is_dense(const Argument& a) {
  bool passed[kMostDimensions] = {};
  int64_t expected = 1;  // the stride of the next dimension
  const auto next = [&] {
    for (int64_t d = 0; d < a.rank; ++d)
      if (!passed[d] && a.sizes[d] != 1 && a.strides[d] == expected) return d;
    return a.rank;
  };
  for (int64_t d = next(); d < a.rank; d = next()) {
    passed[d] = true;
    expected *= a.sizes[d];
  }
  for (int64_t d = 0; d < a.rank; ++d)
    if (!passed[d] && a.sizes[d] != 1) return false;
  return true;
}

// For the gradient of `a`, as autograd has it: with the tensor's own strides where it is dense, which whoever reduces
// gradients compares exactly, or else contiguous.
inline Tensor allocate_gradient(const Argument& a) {
  return is_dense(a) ? allocate(shape_of(a), a.strides, a.dtype, a) : allocate(shape_of(a), false, a.dtype, a);
}

inline void copy(const Tensor& to, const Tensor& from) {
  call(aoti_torch_copy_(to.get(), from.get(), /*non_blocking=*/0), "copy a tensor");
}

// For the gradient of a gamma or beta (N, K), in `size`, the shape that its caller has it in: (N, K, 1, 1), perhaps.
// Nothing, (0, K), where it is not wanted.
inline Tensor allocate_gradient(const char* name, bool wanted, const std::vector<int64_t>& size, int64_t batch,
                                int64_t channels, const Argument& like) {
  if (!wanted || size.empty()) return allocate({wanted ? batch : 0, channels}, false, like.dtype, like);
  Shape shape{};
  shape.rank = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(shape.rank <= kMostDimensions, "film_kernels: ", name, "_size must have at most ", kMostDimensions,
                  " dimensions, got ", shape.rank);
  std::copy(size.begin(), size.end(), shape.sizes);
  const auto ones = [&](int64_t from, int64_t to) {
    return std::all_of(shape.sizes + from, shape.sizes + to, [](int64_t s) { return s == 1; });
  };
  const int64_t last = shape.rank - 1;
  const bool second = last >= 1 && shape.sizes[1] == channels && ones(2, shape.rank);
  const bool behind = last >= 1 && shape.sizes[last] == channels && ones(1, last);
  STD_TORCH_CHECK(shape.sizes[0] == batch && (second || behind), "film_kernels: ", name, "_size must be (", batch, ", ",
                  channels, ") with ones beside the channels, got ", text_of(shape.sizes, shape.rank));
  return allocate(shape, false, like.dtype, like);
}

// A copy of a bias or beta, which backward reads: their owner may write into them before. Nothing where none is asked
// for.
inline Tensor copy_of(const std::optional<Tensor>& factor, bool asked, const Argument& like) {
  if (!asked || !factor.has_value()) return allocate({0}, false, like.dtype, like);
  const Argument a = look_at("a factor", *factor);
  const Tensor made = allocate(shape_of(a), false, a.dtype, a);
  int64_t elements = 1;  // so long as they follow one another
  for (int64_t d = a.rank; d-- > 0;)
    elements = a.sizes[d] == 1 || a.strides[d] == elements ? elements * a.sizes[d] : -1;
  if (elements < 0)
    copy(made, *factor);
  else if (elements > 0)  // a call of PyTorch takes longer than a number a channel does
    std::memcpy(made.data_ptr(), a.data, elements * aoti_torch_dtype_element_size(a.dtype));
  return made;
}

inline void fill_with_zeros(const Tensor& t) { call(aoti_torch_zero_(t.get()), "fill a tensor"); }

// The bits of a Problem as kernels read them, dense; nothing where there is no activation.
class Bits {
 public:
  Bits(const Problem& p, const Tensor& bits, const Argument& like) {
    if (p.activation == Activation::none) return;
    const Argument a = look_at("bits", bits);
    STD_TORCH_CHECK(a.dtype == aoti_torch_dtype_uint8(), "film_kernels: bits must be of dtype uint8");
    check_device(a, like);
    check_shape(a, {p.positions(), p.bit_row()}, "(N * positions, ceil(K / 8))");
    data_ = static_cast<const uint8_t*>(a.data);
    const bool dense = (a.strides[1] == 1 || a.sizes[1] == 1) && (a.strides[0] == a.sizes[1] || a.sizes[0] == 1);
    if (dense || p.positions() == 0) return;
    copy_ = allocate({p.positions(), p.bit_row()}, false, a.dtype, a);
    copy(*copy_, bits);
    data_ = static_cast<const uint8_t*>(copy_->data_ptr());
  }
  operator const uint8_t*() const { return data_; }

 private:
  std::optional<Tensor> copy_;
  const uint8_t* data_ = nullptr;
};

// The bits that forward fills, or none.
inline Tensor allocate_bits(const Problem& p, bool keep, const Argument& like) {
  return allocate({keep ? p.positions() : 0, p.bit_row()}, false, aoti_torch_dtype_uint8(), like);
}

// The shapes that gamma's and beta's gradients are asked for in; empty for (N, K).
struct FactorSizes {
  std::vector<int64_t> gamma, beta;
};

// Which of the weight gradient's results are asked for.
struct Wanted {
  bool weight, bias, gamma, beta;
};

// What the weight gradient's operator returns; an empty tensor stands for a gradient that is not wanted.
struct WeightGradients {
  Tensor weight, bias, gamma, beta;

  WeightGradients(const Problem& p, const Argument& w, const Wanted& wanted, const FactorSizes& sizes = {})
      : weight(wanted.weight ? allocate_gradient(w) : allocate({0}, false, w.dtype, w)),
        bias(allocate({wanted.bias ? p.out_channels : 0}, false, w.dtype, w)),
        gamma(allocate_gradient("gamma", wanted.gamma, sizes.gamma, p.batch, p.out_channels, w)),
        beta(allocate_gradient("beta", wanted.beta, sizes.beta, p.batch, p.out_channels, w)) {}

  GradWeightArgs args(const View& grad, const View& input, const View& w, const Matrix& b, const Matrix& factor,
                      const uint8_t* bits) const {
    const auto data = [](const Tensor& t) { return t.numel() > 0 ? t.data_ptr() : nullptr; };
    return {grad,       input,       w,         weight.dim() > 1 ? view_of(weight) : View{}, b, factor, bits,
            data(bias), data(gamma), data(beta)};
  }

  // All zeros, where there are no positions to sum over.
  void zero() const {
    for (const Tensor* t : {&weight, &bias, &gamma, &beta}) fill_with_zeros(*t);
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {weight, bias, gamma, beta}; }
};

// The tensors of the weight gradient's operators, checked.
struct GradWeightTensors {
  Argument input, weight, grad;
  Problem problem;
  Matrix bias, gamma;
  Bits bits;

  GradWeightTensors(const Tensor& g, const Tensor& kept, const Tensor& x, const Tensor& w,
                    const std::optional<Tensor>& b, const std::optional<Tensor>& factor, const Options& options)
      : input(look_at("input", x)),
        weight(look_at_weight(w, input)),
        grad(look_at("grad", g)),
        problem(problem_of(input_shape("input", input.sizes, input.rank, weight), weight, options)),
        bias(look_at_factor("bias", b, {problem.out_channels}, input)),
        gamma(look_at_factor("gamma", factor, {problem.batch, problem.out_channels}, input)),
        bits(problem, kept, input) {
    check_kind(grad, input);
    check_shape(grad, output_shape(problem, weight), "(N, K, *out)");
  }
};

// Those of the input gradient's.
struct GradInputTensors {
  Argument grad, weight;
  Shape shape;
  Problem problem;
  Matrix gamma;
  Bits bits;

  GradInputTensors(const Tensor& g, const Tensor& kept, const Tensor& w, const std::optional<Tensor>& factor,
                   const std::vector<int64_t>& input_size, const Options& options)
      : grad(look_at("grad", g)),
        weight(look_at_weight(w, grad)),
        shape(input_shape("input_size", input_size.data(), static_cast<int64_t>(input_size.size()), weight)),
        problem(problem_of(shape, weight, options)),
        gamma(look_at_factor("gamma", factor, {problem.batch, problem.out_channels}, grad)),
        bits(problem, kept, grad) {
    check_shape(grad, output_shape(problem, weight), "(N, K, *out)");
  }
};

// And forward's.
struct ForwardTensors {
  Argument input, weight;
  Problem problem;
  Matrix bias, gamma, beta;

  ForwardTensors(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, const std::optional<Tensor>& factor,
                 const std::optional<Tensor>& shift, const Options& options)
      : input(look_at("input", x)),
        weight(look_at_weight(w, input)),
        problem(problem_of(input_shape("input", input.sizes, input.rank, weight), weight, options)),
        bias(look_at_factor("bias", b, {problem.out_channels}, input)),
        gamma(look_at_factor("gamma", factor, {problem.batch, problem.out_channels}, input)),
        beta(look_at_factor("beta", shift, {problem.batch, problem.out_channels}, input)) {}
};

}  // namespace film
