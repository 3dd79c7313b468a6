// Options in one tensor, which a call hands over in half the time that two lists take.
#pragma once

#include <array>
#include <cstring>

#include "tensors.h"

namespace film {

// 64-bit integers side by side: the geometry, the bits of the numbers, and whether the output is channels_last.
// film_kernels/backends/compiled.py writes them.
template <size_t Integers, size_t Numbers>
class PackedOptions {
 public:
  explicit PackedOptions(const Tensor& packed) {
    constexpr int64_t kCount = Integers + Numbers + 1;
    const Argument a = look_at("options", packed);
    STD_TORCH_CHECK(a.dtype == aoti_torch_dtype_int64() && a.rank == 1 && a.sizes[0] == kCount && a.strides[0] == 1,
                    "film_kernels: options must be ", kCount, " integers of 64 bits side by side");
    // Copied before they are checked: somebody may write into the tensor meanwhile.
    const auto* from = static_cast<const int64_t*>(a.data);
    std::memcpy(geometry_.data(), from, sizeof geometry_);
    std::memcpy(numbers_.data(), from + Integers, sizeof numbers_);
    channels_last_ = from[kCount - 1] != 0;
  }

  Options options() const { return {{geometry_.data(), Integers}, {numbers_.data(), Numbers}, /*smooth=*/true}; }
  bool channels_last() const { return channels_last_; }

 private:
  std::array<int64_t, Integers> geometry_;
  std::array<double, Numbers> numbers_;
  bool channels_last_;
};

// A copy of a bias or beta, which backward reads, or nothing where none is asked for or there is none.
inline std::optional<Tensor> copy_if(bool asked, const std::optional<Tensor>& factor, const Argument& like) {
  if (!asked || !factor.has_value()) return std::nullopt;
  return copy_of(factor, asked, like);
}

}  // namespace film
