// Whether PyTorch's own convolution is faster than the kernels here, from the sizes alone (library_is_faster.cpp).
#pragma once

#include "kernels.h"

namespace film::FILM_ISA {

inline int64_t taps_of(const Problem& p) { return p.h.kernel * p.w.kernel; }

// Of the kernels for vectors, and of those for pairs of bfloat16.
bool library_is_faster(const Problem&, const Asked&);
bool library_is_faster_than_pairs(const Problem&, const Asked&);

// Whether Winograd's filtering leaves no more than a third of the products, so that even bfloat16's are faster in
// float32 than they are in pairs.
bool is_filtered_to_a_third(const Problem&);

// What holds for any instructions: taps so far apart that a block reads mostly what lies between its positions' own,
bool has_far_taps(const Problem&);
// and, of a convolution with nothing behind it, in float32: too few positions, to which the weight takes longer to be
// read than the sum; what a library writes, or reads, as it lies in memory; and of a small sample, which PyTorch
// multiplies in half of oneDNN's time or less, too few products: `least`, by vectors or by tiles, where the weight is
// not packed.
constexpr int64_t kProductsByVectors = 16 << 20, kProductsByTiles = 1 << 20;
bool is_slow_alone(const Problem&, const Asked&, int64_t least);

}  // namespace film::FILM_ISA
