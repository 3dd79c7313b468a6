// What the operators are given, checked before a kernel sees it.
//
// The registered operators can be called by anybody with anything, and what autograd kept comes back through hooks that
// may have changed it. The kernels trust every size, stride and pointer; so whatever they rely on is asked here, and an
// error names the argument. In particular a null pointer means "not given" behind this door only: the memory of a
// tensor that was given is known to be there.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "call.h"
#include "problem.h"

namespace film {

using torch::stable::Tensor;

constexpr int64_t kMostDimensions = 5;

struct Shape {
  int64_t rank = 0;
  int64_t sizes[kMostDimensions] = {};

  Shape(std::initializer_list<int64_t> of) {
    for (int64_t size : of) sizes[rank++] = size;
  }
  bool operator==(const Shape& other) const {
    return rank == other.rank && std::equal(sizes, sizes + rank, other.sizes);
  }
};

inline std::string text_of(const int64_t* sizes, int64_t rank) {
  std::string text = "(";
  for (int64_t d = 0; d < rank; ++d) text += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  return text + ")";
}

// A tensor that an operator was given, and what is asked of it more than once. `data` holds all its elements.
struct Argument {
  const char* name;
  int64_t rank;
  const int64_t *sizes, *strides;
  int32_t dtype, device_type, device;
  void* data;

  std::string shape() const { return text_of(sizes, rank); }
};

// Raises where the tensor's storage does not reach as far as its sizes and strides do: it may have been freed or
// resized since.
inline Argument look_at(const char* name, const Tensor& tensor) {
  constexpr const char* kAsking = "tell what a tensor is like";
  const AtenTensorHandle t = tensor.get();
  Argument a{name, 0, nullptr, nullptr, 0, 0, 0, nullptr};
  int64_t *sizes, *strides, bytes, offset;
  bool defined;
  call(aoti_torch_is_defined(t, &defined), kAsking);  // None stands for a tensor that is not, wherever one is asked for
  STD_TORCH_CHECK(defined, "film_kernels: ", name, " must be a tensor, got None");
  call(aoti_torch_get_dim(t, &a.rank), kAsking);
  call(aoti_torch_get_sizes(t, &sizes), kAsking);
  call(aoti_torch_get_strides(t, &strides), kAsking);
  call(aoti_torch_get_dtype(t, &a.dtype), kAsking);
  call(aoti_torch_get_device_type(t, &a.device_type), kAsking);
  call(aoti_torch_get_device_index(t, &a.device), kAsking);
  call(aoti_torch_get_storage_size(t, &bytes), kAsking);
  call(aoti_torch_get_storage_offset(t, &offset), kAsking);
  call(aoti_torch_get_data_ptr(t, &a.data), kAsking);
  a.sizes = sizes, a.strides = strides;
  int64_t last = offset;  // the place of the last element
  bool empty = false, beyond = false;
  for (int64_t d = 0; d < a.rank; ++d) {
    int64_t step;
    empty = empty || sizes[d] == 0;
    beyond =
        beyond || __builtin_mul_overflow(sizes[d] - 1, strides[d], &step) || __builtin_add_overflow(last, step, &last);
  }
  if (empty) return a;
  const int64_t held = bytes / static_cast<int64_t>(aoti_torch_dtype_element_size(a.dtype));
  STD_TORCH_CHECK(!beyond && last < held && a.data != nullptr, "film_kernels: the storage of ", name, " has ", bytes,
                  " bytes, which do not hold its elements of shape ", a.shape(), ": it was freed or resized");
  return a;
}

inline DType dtype_of(const Argument& a) {
  if (a.dtype == aoti_torch_dtype_float32()) return DType::f32;
  if (a.dtype == aoti_torch_dtype_float64()) return DType::f64;
  if (a.dtype == aoti_torch_dtype_bfloat16()) return DType::bf16;
  STD_TORCH_CHECK(a.dtype == aoti_torch_dtype_float16(), "film_kernels: ", a.name,
                  " must be of dtype float32, float64, bfloat16 or float16");
  return DType::f16;
}

inline void check_device(const Argument& a, const Argument& like) {
  STD_TORCH_CHECK(a.device_type == like.device_type && a.device == like.device, "film_kernels: ", a.name,
                  " must be on the device of ", like.name);
}

inline void check_kind(const Argument& a, const Argument& like) {
  STD_TORCH_CHECK(a.dtype == like.dtype, "film_kernels: ", a.name, " must have the dtype of ", like.name);
  check_device(a, like);
}

inline void check_shape(const Argument& a, const Shape& shape, const char* meaning) {
  STD_TORCH_CHECK(a.rank == shape.rank && std::equal(a.sizes, a.sizes + a.rank, shape.sizes), "film_kernels: ", a.name,
                  " must have shape ", meaning, " = ", text_of(shape.sizes, shape.rank), ", got ", a.shape());
}

// Whether a product is at most so much, with 1 in place of 0: sizes of nothing are multiplied into strides too.
inline bool is_within(int64_t most, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors)
    if (__builtin_mul_overflow(product, std::max<int64_t>(factor, 1), &product) || product > most) return false;
  return true;
}

// No machine has the memory for more elements, and no product of sizes overflows in a kernel below that. (Tensors whose
// strides are 0 can have more, and so can shapes that are told as numbers.)
constexpr int64_t kMostElements = int64_t(1) << 44, kMostAlong = int64_t(1) << 40, kMostProducts = int64_t(1) << 60;

// What an operator is told beside tensors. film_kernels/backends/compiled.py writes both lists and `problem_of` reads
// them, each from front to back: geometry has a row for the height and one for the width, then groups, activation and
// position; numbers has lower_slope and gamma_offset. A 1d convolution has a height of 1.
template <class T>
struct List {
  const T* data;
  size_t count;

  List(const T* first, size_t size) : data(first), count(size) {}
  List(const std::vector<T>& of) : data(of.data()), count(of.size()) {}
};
struct Options {
  List<int64_t> geometry;
  List<double> numbers;
  bool smooth = false;  // whether any activation will do, not only those of which bits can be kept
};

// Reads a list of known length from front to back.
template <class T>
class Reader {
 public:
  Reader(const char* name, const char* what, size_t count, const List<T>& list) : next_(list.data) {
    STD_TORCH_CHECK(list.count == count, "film_kernels: ", name, " must hold ", count, " ", what, ", got ", list.count);
  }
  T next() { return *next_++; }

 private:
  const T* next_;
};

// One axis, from its sizes and a row of the geometry. `name` is its own.
inline Axis axis_of(const char* name, int64_t in, int64_t kernel, Reader<int64_t>& row) {
  const int64_t stride = row.next(), dilation = row.next(), pad = row.next(), out = row.next();
  STD_TORCH_CHECK(kernel >= 1, "film_kernels: weight must have at least one kernel tap along the ", name);
  STD_TORCH_CHECK(stride >= 1, "film_kernels: geometry: the stride of the ", name, " must be at least 1, got ", stride);
  STD_TORCH_CHECK(dilation >= 1, "film_kernels: geometry: the dilation of the ", name, " must be at least 1, got ",
                  dilation);
  STD_TORCH_CHECK(pad >= 0, "film_kernels: geometry: the padding of the ", name, " must be at least 0, got ", pad);
  STD_TORCH_CHECK(out >= 0, "film_kernels: geometry: the output size of the ", name, " must be at least 0, got ", out);
  STD_TORCH_CHECK(std::max({in, pad}) <= kMostAlong && is_within(kMostAlong, {out, stride}) &&
                      is_within(kMostAlong, {kernel, dilation}),
                  "film_kernels: geometry: the ", name, " is too large");
  // Zeros may follow the input, as many as the output size asks for, but no part of it may be cut off.
  const int64_t left = in + pad - dilation * (kernel - 1) - 1, least = left < 0 ? 0 : left / stride + 1;
  STD_TORCH_CHECK(out >= least, "film_kernels: geometry: the output size of the ", name, " must be at least ", least,
                  " for an input of ", in, ", got ", out);
  // Where there is one output position or one tap, the step to a next one means nothing, and is not to cost memory.
  return {in,  kernel, out > 1 ? stride : std::min(stride, std::max<int64_t>(in, 1)), kernel > 1 ? dilation : 1,
          pad, out};
}

inline double finite(const char* name, double number) {
  STD_TORCH_CHECK(std::isfinite(number), "film_kernels: ", name, " must be finite, got ", number);
  return number;
}

// The Problem of an input of that shape.
inline Problem problem_of(const Shape& input, const Argument& weight, const Options& options) {
  Reader<int64_t> geometry("geometry", "integers", 11, options.geometry);
  Reader<double> numbers("numbers", "numbers", 2, options.numbers);
  const bool flat = weight.rank == 3;
  Problem p;
  p.batch = input.sizes[0], p.in_channels = input.sizes[1], p.out_channels = weight.sizes[0];
  p.dtype = dtype_of(weight);
  p.h = axis_of("height", flat ? 1 : input.sizes[2], flat ? 1 : weight.sizes[2], geometry);
  p.w = axis_of("width", input.sizes[flat ? 2 : 3], weight.sizes[flat ? 2 : 3], geometry);
  STD_TORCH_CHECK(!flat || (p.h.pad == 0 && p.h.out == 1),
                  "film_kernels: geometry: the height of a 1d convolution must have padding 0 and output size 1");
  const int64_t groups = p.groups = geometry.next();
  STD_TORCH_CHECK(p.out_channels >= 1 && weight.sizes[1] >= 1,
                  "film_kernels: weight must have at least one output channel and one input channel, got shape ",
                  weight.shape());
  STD_TORCH_CHECK(groups >= 1 && p.out_channels % groups == 0,
                  "film_kernels: geometry: groups must divide the output channels of weight, ", p.out_channels,
                  ", got ", groups);
  STD_TORCH_CHECK(is_within(kMostAlong, {groups, weight.sizes[1]}) && p.in_channels == groups * weight.sizes[1],
                  "film_kernels: input must have as many channels as weight has in its groups, got ", p.in_channels,
                  " for a weight of shape ", weight.shape(), " and ", groups, " groups");
  const int64_t activation = geometry.next(), position = geometry.next();
  STD_TORCH_CHECK(options.smooth || (activation >= 0 && activation <= 2),
                  "film_kernels: geometry: activation must be 0, 1 or 2, got ", activation);
  STD_TORCH_CHECK(activation >= 0 && activation <= kLastActivation,
                  "film_kernels: geometry: activation must be from 0 to ", kLastActivation, ", got ", activation);
  STD_TORCH_CHECK(position == 0 || position == 1, "film_kernels: geometry: position must be 0 or 1, got ", position);
  p.activation = static_cast<Activation>(activation);
  p.position = static_cast<Position>(position);
  p.lower_slope = finite("lower_slope", numbers.next());
  p.gamma_offset = finite("gamma_offset", numbers.next());
  const int64_t sums = weight.sizes[1] * p.h.kernel * p.w.kernel;  // products of one output element
  STD_TORCH_CHECK(is_within(kMostElements, {p.batch, p.in_channels, p.h.in + p.h.pad, p.w.in + p.w.pad}) &&
                      is_within(kMostElements, {p.batch, p.out_channels, p.h.out, p.w.out}) &&
                      is_within(kMostElements, {p.out_channels, weight.sizes[1], p.h.kernel, p.w.kernel}) &&
                      is_within(kMostProducts, {p.batch, p.out_channels, p.h.out, p.w.out, sums}),
                  "film_kernels: input is too large: ", text_of(input.sizes, input.rank));
  return p;
}

// The weight, beside the tensor that decides on dtype and device.
inline Argument look_at_weight(const Tensor& weight, const Argument& like) {
  const Argument w = look_at("weight", weight);
  STD_TORCH_CHECK(w.rank == 3 || w.rank == 4,
                  "film_kernels: weight must have shape (K, C / groups, *kernel) with one or two kernel sizes, got ",
                  w.shape());
  dtype_of(like);
  check_kind(w, like);
  return w;
}

// The input's shape, as the tensor has it or as it is told.
inline Shape input_shape(const char* name, const int64_t* sizes, int64_t rank, const Argument& weight) {
  STD_TORCH_CHECK(rank == weight.rank, "film_kernels: ", name, " must have as many dimensions as weight, ", weight.rank,
                  ", got ", rank);
  Shape shape{};
  shape.rank = rank;
  for (int64_t d = 0; d < rank; ++d) {
    STD_TORCH_CHECK(sizes[d] >= 0, "film_kernels: ", name, " must not be negative, got ", text_of(sizes, rank));
    shape.sizes[d] = sizes[d];
  }
  return shape;
}

// (N, K, *out)
inline Shape output_shape(const Problem& p, const Argument& weight) {
  return weight.rank == 3 ? Shape{p.batch, p.out_channels, p.w.out} : Shape{p.batch, p.out_channels, p.h.out, p.w.out};
}

// Whether every size but those of dimension 0 and of `channel_dim` is 1.
inline bool is_one_beside(const Argument& a, int64_t channel_dim) {
  for (int64_t d = 1; d < a.rank; ++d)
    if (d != channel_dim && a.sizes[d] != 1) return false;
  return true;
}

// A bias (K), a gamma or beta (N, K), or nothing. A gamma or beta may have ones beside its channels, (N, K, 1, 1) or
// (N, 1, 1, K), and one row for all samples.
inline Matrix look_at_factor(const char* name, const std::optional<Tensor>& tensor, const Shape& shape,
                             const Argument& like) {
  if (!tensor.has_value()) return {};
  const Argument a = look_at(name, *tensor);
  check_kind(a, like);
  if (shape.rank == 2 && a.rank > 2 && (a.sizes[0] == 1 || a.sizes[0] == shape.sizes[0])) {
    for (const int64_t d : {int64_t(1), a.rank - 1})
      if (a.sizes[d] == shape.sizes[1] && is_one_beside(a, d))
        return {a.data, a.sizes[0] == 1 ? 0 : a.strides[0], a.strides[d]};
  }
  check_shape(a, shape, shape.rank == 1 ? "(K)" : "(N, K)");
  return shape.rank == 1 ? Matrix{a.data, 0, a.strides[0]} : Matrix{a.data, a.strides[0], a.strides[1]};
}

}  // namespace film
