// Where PyTorch's own convolution with passes after it was measured to be faster than the kernels here: the one place
// that says so. bench/NOTES.md has the figures.
#include "winograd_tiles.h"

namespace film::FILM_ISA {
namespace {

// Groups of fewer output channels are read and written plane by plane, with so little work for each element that the
// way through a tile's memory takes longer than the products do.
constexpr int64_t kLeastGroup = 4;
// In channels_last their planes have to be turned besides, which pays from so many channels on.
constexpr int64_t kLeastGroupTurned = 8;
// The kernels here widen bfloat16 to float32. On a machine that multiplies it in pairs the library has twice the
// arithmetic, which shows from so many products for each output element on.
constexpr int64_t kManyProducts = 256;

bool has_narrow_groups(const Problem& p, bool channels_last) {
  return p.groups > 1 && p.group_out() < (channels_last ? kLeastGroupTurned : kLeastGroup);
}

// Whether this machine adds products of bfloat16 pairs in one instruction (AVX512_BF16), and so the library does.
bool multiplies_bfloat16_pairs() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Whether forward and both gradients go by Winograd's filtering where the data has no zeros to speak of. For types of
// 16 bits, which have digits to spare, nothing but the sizes decides, and which tiles are named here does not matter.
bool goes_by_winograd(const Problem& p) {
  const auto spread = [&] {
    const Sample dense{1, 0, std::vector<float>(p.in_channels, 1)};
    return Spread(dense, dense);
  };
  const auto density = [] { return 1.0; };
  const auto serves = [](auto) { return true; };
  return with_tiles<Square<2, 2>, Line<2, 3>>(p, pads_by_more_than_half(p), spread, serves) &&
         with_gradient_tiles(p, density, serves);
}

}  // namespace

// From the sizes alone, without the data.
bool library_is_faster(const Problem& p, bool channels_last) {
  if (has_narrow_groups(p, channels_last)) return true;
  const bool many_products = p.group_in() * p.h.kernel * p.w.kernel >= kManyProducts;
  return p.dtype == DType::bf16 && many_products && !goes_by_winograd(p) && multiplies_bfloat16_pairs();
}

}  // namespace film::FILM_ISA
