// Whether PyTorch's own convolution is faster than the kernels here, from the sizes alone (library_is_faster.cpp).
#pragma once

#include "kernels.h"

namespace film::FILM_ISA {

inline int64_t taps_of(const Problem& p) { return p.h.kernel * p.w.kernel; }

// Of the kernels for vectors.
bool library_is_faster(const Problem&, const Asked&);

// What holds for any instructions: taps so far apart that a block reads mostly what lies between its positions' own,
bool has_far_taps(const Problem&);
// and, of a convolution with nothing behind it, in float32: too few positions, to which the weight takes longer to be
// read than the sum; what a library writes, or reads, as it lies in memory; and of a small sample, which PyTorch
// multiplies in half of oneDNN's time or less, fewer products than these. By tiles, or from a packed weight, it takes
// fewer.
constexpr int64_t kLeastPositions = 32;
constexpr int64_t kProductsOfSmallSampleAtOneTap = 4 << 20, kProductsOfSmallSample = 16 << 20;
constexpr int64_t kProductsOfSmallSamplePacked = 1 << 19, kProductsOfSmallSampleByTiles = 1 << 20;
bool is_slow_alone(const Problem&, const Asked&, int64_t least_products_of_small_sample);

}  // namespace film::FILM_ISA
