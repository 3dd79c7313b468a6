// 1x1 convolutions as ones along fewer and longer rows.
#pragma once

#include <cstdint>
#include <limits>

#include "../problem.h"

namespace film {

constexpr int64_t kOneRow = std::numeric_limits<int64_t>::max();

// Rewrites a 1x1 convolution without padding so that its positions are rows of at least so many columns, or one row
// where that cannot be. Rows shorter than a tile or a transposed block would leave places idle. Nothing happens where
// the tensors' memory does not allow it. The bits lie the same either way.
template <class... Views>
void flatten(Problem& p, int64_t columns, Views&... views) {
  const auto single = [](const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.pad == 0 && a.in == a.out; };
  const auto dense = [&](const View& v) { return v.h == v.w * p.w.in; };
  if (p.h.in == 1 || !single(p.h) || !single(p.w) || !(dense(views) && ...)) return;
  int64_t together = 1;
  while (together < p.h.in && (p.w.in * together < columns || p.h.in % together != 0)) ++together;
  p.w.in = p.w.out = together * p.w.in;
  p.h.in = p.h.out = p.h.in / together;
  ((views.h *= together), ...);
}

}  // namespace film
