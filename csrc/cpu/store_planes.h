// From a tile [channels][columns] of results to a tensor of any layout.
#pragma once

#include "ranges.h"
#include "strip.h"

namespace film::FILM_ISA {

// Stores the columns of a run, of some channels, out of a tile whose channels are `pitch` elements apart.
template <class A, class T>
void store_planes(const View& view, const A* tile, int64_t pitch, const ColumnRun& run, const ChannelRange& channels) {
  T* dst = static_cast<T*>(view.data) + run.n * view.n + run.h * view.h + run.first * view.w + channels.first * view.c;
  const int64_t step = run.step * view.w;
  if (step == 1) {
    for (int64_t c = 0; c < channels.count; ++c) narrow_copy(dst + c * view.c, tile + c * pitch, run.count);
  } else if (view.c == 1) {
    turn<A>(dst, step, tile, pitch, channels.count, run.count);
  } else {
    for (int64_t j = 0; j < run.count; ++j)
      for (int64_t c = 0; c < channels.count; ++c) dst[j * step + c * view.c] = narrow<T>(tile[c * pitch + j]);
  }
}

template <class A>
using StorePlanes = void (*)(const View&, const A*, int64_t, const ColumnRun&, const ChannelRange&);

template <class A>
StorePlanes<A> plane_storer(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> StorePlanes<A> { return store_planes<A, decltype(element)>; });
}

}  // namespace film::FILM_ISA
