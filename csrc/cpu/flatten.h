// 1x1 convolutions as ones along a single dimension.
#pragma once

#include "../problem.h"

namespace film {

// Rewrites a 1x1 convolution without padding so that its positions are one long row, where the tensors' memory allows:
// rows shorter than a tile, a transposed block or a run would leave places idle. The bits lie the same either way.
template <class... Views>
void flatten(Problem& p, const Views&... views) {
  const auto single = [](const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.pad == 0 && a.in == a.out; };
  const auto dense = [&](const View& v) { return v.h == v.w * p.w.in; };
  if (p.h.in == 1 || !single(p.h) || !single(p.w) || !(dense(views) && ...)) return;
  p.w.in = p.w.out = p.h.in * p.w.in;
  p.h.in = p.h.out = 1;
}

}  // namespace film
