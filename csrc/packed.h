// A weight that was packed beforehand, as a tensor of one dimension: its first element says in which way, so many
// elements further on are the packed ones, and after them there is room for what vectors read past an end.
#pragma once

#include "tensors.h"

namespace film {

constexpr int64_t kPackedHead = 16, kPackedTail = 32;  // elements; the first are a cache line at least

inline int32_t dtype_of_sums(const Argument& a) {
  return dtype_of(a) == DType::f64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// Calls body(data) with the elements in their type.
template <class Body>
void with_packed_elements(const Argument& a, const Body& body) {
  if (a.dtype == aoti_torch_dtype_float64())
    body(static_cast<double*>(a.data));
  else
    body(static_cast<float*>(a.data));
}

// A new one for `packing`, whose elements are still to be written to its `data`.
inline Tensor allocate_packed(PackedWeight& packing, const Argument& weight) {
  const Tensor made = allocate({kPackedHead + packing.elements + kPackedTail}, false, dtype_of_sums(weight), weight);
  with_packed_elements(look_at("a result", made), [&](auto* data) {
    std::fill_n(data, kPackedHead, 0);
    data[0] = packing.way;
    std::fill_n(data + kPackedHead + packing.elements, kPackedTail, 0);
    packing.data = data + kPackedHead;
  });
  return made;
}

// What forward is given, or nothing. Whether it is of the weight that it comes with, only sizes tell.
inline PackedWeight look_at_packed(const std::optional<Tensor>& packed, const Argument& weight) {
  if (!packed.has_value()) return {};
  const Argument a = look_at("packed", *packed);
  check_device(a, weight);
  STD_TORCH_CHECK(
      a.dtype == dtype_of_sums(weight) && a.rank == 1 && a.strides[0] == 1 && a.sizes[0] >= kPackedHead + kPackedTail,
      "film_kernels: packed must be what the operator `pack` made of weight");
  PackedWeight found{nullptr, 0, a.sizes[0] - kPackedHead - kPackedTail};
  with_packed_elements(a, [&](auto* data) {
    found.data = data + kPackedHead;
    if (data[0] >= 0 && data[0] <= 1e6) found.way = static_cast<int64_t>(data[0]);
  });
  return found;
}

}  // namespace film
