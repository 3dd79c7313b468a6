// When a convolution is summed with columns in the lanes (planes.h), and when channels in the lanes are faster. All of
// it was measured on two Zen 4 cores with AVX-512, against the register tiles of convolve.h and unit_tile.h.
#pragma once

#include "../problem.h"
#include "scratch.h"
#include "tile.h"

namespace film::FILM_ISA {

// A vector of columns is filled up with nothing past a row's end, which rows of fewer columns do not pay for.
constexpr int64_t kLeastColumns = 8;
// Groups of fewer output channels leave so many lanes idle that planes always win: depthwise layers went from 0.07 to
// 0.13 of the library's speed to 0.75.
constexpr int64_t kNarrowGroup = 8;
// Where three lanes of four would be idle, planes won up to so many products for each sum. With more, a row has to be
// wide: 3 input channels in dx came to 1.3 to 3.6 times the library's speed from 24 columns on, and to 0.7 at 14
// columns and 2304 products.
constexpr int64_t kProductsOfIdleLanes = 1024, kWideRow = 24;
// Where a quarter of the lanes or more would be idle. A stride's planes are dealt out to phases, which costs more.
constexpr int64_t kProductsOfSomeIdleLanes = 256, kProductsOfSomeIdleLanesStrided = 160;
// With no lane idle, gathering patches pays from so many products on; fewer are for planes where they cost nothing to
// make: rows lie side by side, or so few channels have to be turned.
constexpr int64_t kProductsOfFullLanes = 63, kFewTurnedChannels = 4;

// Planes of a whole row may take so much memory of a thread, in elements of the input and the output together.
constexpr int64_t kLongRow = int64_t(1) << 22;

// Rows of 1x1 convolutions have at least so many columns, and not all, since rows are what threads share: 20 -> 208
// channels of one sample took 181 us in one row, and 105 us like this.
constexpr int64_t kPlaneColumns = 128;

// Whether planes are the faster way for a kernel whose register tiles would have `filled` places in their lanes and sum
// `products`. `tensor` is the one that is read or written with `sources` channels of a group: where its channels lie
// side by side, planes have to be turned first.
inline bool suits_planes(const Problem& p, const View& tensor, int64_t filled, int64_t sources, int64_t products) {
  if (p.w.out < kLeastColumns) return false;
  if (p.groups > 1 && p.group_out() < kNarrowGroup) return true;
  const int64_t lanes = round_up(filled, kVectorBytes / (p.dtype == DType::f64 ? 8 : 4));
  if (lanes >= 4 * filled) return products <= kProductsOfIdleLanes || p.w.out >= kWideRow;
  if (3 * lanes >= 4 * filled && lanes > filled)
    return products <= (p.w.stride == 1 ? kProductsOfSomeIdleLanes : kProductsOfSomeIdleLanesStrided);
  return (tensor.w == 1 || sources <= kFewTurnedChannels) && products <= kProductsOfFullLanes;
}

// Whether planes of a whole row would take more memory than a thread should have at hand.
inline bool has_long_rows(const Problem& p) { return p.in_channels * p.w.in + p.out_channels * p.w.out > kLongRow; }

}  // namespace film::FILM_ISA
