// Which source positions a convolution's destination positions read, in one dimension and in all.
//
// A destination position i of one dimension reads source positions i * step + offset[t], one for each of its taps:
//   forward      step = stride, offset[t] = t * dilation - padding
//   grad_input   one pass for each residue f of the stride: destination f + stride * i, step = 1 and
//                offset = (f + padding - t * dilation) / stride, for those taps t that divide
#pragma once

#include <algorithm>
#include <vector>

#include "../problem.h"
#include "simd.h"

namespace film::FILM_ISA {

struct Taps {
  int64_t source;               // size of the source in this dimension
  int64_t count;                // destination positions of this pass
  int64_t first, spacing;       // destination coordinate = first + spacing * i
  int64_t step;                 // source positions from one destination to the next
  std::vector<int64_t> offset;  // ascending
  std::vector<int64_t> kernel;  // which kernel tap each one is
  int64_t low() const { return offset.empty() ? 0 : offset.front(); }
  int64_t extent(int64_t n) const { return offset.empty() ? 1 : (n - 1) * step + offset.back() - offset.front() + 1; }
  bool consecutive() const {
    for (size_t t = 1; t < offset.size(); ++t)
      if (offset[t] != offset[t - 1] + 1) return false;
    return true;
  }
};

inline Taps forward_taps(const Axis& axis) {
  Taps taps{axis.in, axis.out, 0, 1, axis.stride, {}, {}};
  for (int64_t t = 0; t < axis.kernel; ++t) {
    taps.offset.push_back(t * axis.dilation - axis.pad);
    taps.kernel.push_back(t);
  }
  return taps;
}

inline Taps grad_input_taps(const Axis& axis, int64_t residue) {
  const int64_t count = (axis.in - residue + axis.stride - 1) / axis.stride;
  Taps taps{axis.out, std::max<int64_t>(count, 0), residue, axis.stride, 1, {}, {}};
  for (int64_t t = axis.kernel - 1; t >= 0; --t) {
    const int64_t distance = residue + axis.pad - t * axis.dilation;
    if (distance % axis.stride != 0) continue;
    taps.offset.push_back(distance / axis.stride);
    taps.kernel.push_back(t);
  }
  return taps;
}

// Destination positions begin .. end (of a pass's own count), as taps that number them from 0 on.
inline Taps part_of(const Taps& taps, int64_t begin, int64_t end) {
  Taps part = taps;
  part.count = std::max<int64_t>(std::min(end, taps.count) - begin, 0);
  for (int64_t& offset : part.offset) offset += part.step * begin;
  return part;
}

// The part of a block's source rows or columns, `extent` of them for destinations from `first` on, that are the
// source's own: the others are padding.
struct Inside {
  Inside(const Taps& taps, int64_t first, int64_t extent) {
    const int64_t low = first * taps.step + taps.low();
    begin = std::clamp<int64_t>(-low, 0, extent);
    end = std::clamp<int64_t>(taps.source - low, begin, extent);
  }
  int64_t count() const { return end - begin; }
  int64_t begin, end;
};

// One pass over the destination (there are several only for grad_input with a stride).
template <class A>
struct Pass {
  Taps h, w;
  int64_t products;               // R = taps * source channels of a group
  std::vector<const A*> weights;  // of each group: panels of [R][vectors * lanes]
};

// What a pass goes over: samples, groups, and the channels of one group in the source and in the destination.
struct PassSizes {
  int64_t batch, groups, sources, channels;
  int64_t all_sources() const { return groups * sources; }
  int64_t all_channels() const { return groups * channels; }
};

}  // namespace film::FILM_ISA
