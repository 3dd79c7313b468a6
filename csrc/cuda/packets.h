// What the kernels that move packets of 16 bytes ask of tensors in memory.
#pragma once

#include <initializer_list>

#include "../checks.h"

namespace film {

constexpr int64_t kPacketBytes = 16;

inline bool begins_at_packet(const void* data) { return reinterpret_cast<uintptr_t>(data) % kPacketBytes == 0; }

// Whether memory is dense with the dimensions in `order`, the innermost one last, from a multiple of 16 bytes on.
inline bool lies_in(const Argument& a, std::initializer_list<int> order) {
  if (a.rank != 4) return false;
  int64_t expected = 1;
  for (const int* d = order.end(); d-- != order.begin(); expected *= a.sizes[*d])
    if (a.sizes[*d] != 1 && a.strides[*d] != expected) return false;
  return begins_at_packet(a.data);
}

inline bool is_channels_last(const Argument& a) { return lies_in(a, {0, 2, 3, 1}); }

inline void check_channels_last(const Argument& a) {
  STD_TORCH_CHECK(is_channels_last(a), "film_kernels: ", a.name,
                  " must be channels_last, dense, and begin at a multiple of ", kPacketBytes, " bytes");
}

// A factor (K) or (N, K) that is read by packets or parts of them.
inline void check_rows_of_packets(const char* name, const Matrix& m, DType dtype) {
  const int64_t row = m.n * (dtype == DType::f32 ? 4 : 2);
  STD_TORCH_CHECK(m.data == nullptr || (m.k == 1 && row % kPacketBytes == 0 && begins_at_packet(m.data)),
                  "film_kernels: ", name, " must have its channels side by side, and rows that begin at a multiple of ",
                  kPacketBytes, " bytes");
}

}  // namespace film
