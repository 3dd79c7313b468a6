// Stores the register tile's results, [position][channel], to a tensor of any layout.
#pragma once

#include "strip.h"
#include "tile.h"

namespace film::FILM_ISA {

// The place of an output position in the destination.
struct Place {
  int64_t n, h, w;
};

// The most places of one tile.
constexpr int64_t kMostPlaces = std::max(kTileRows, 16);

// Stores a tile [place][vectors * lanes] to a tensor: channels c0 .. c0 + count at each of the places.
template <class A, class T>
void store_tile(const View& view, const A* tile, int vectors, const Place* places, int64_t place_count, int64_t c0,
                int64_t count) {
  T* base = static_cast<T*>(view.data) + c0 * view.c;
  const int64_t pitch = vectors * kLanes<A>;
  int64_t at[kMostPlaces];
  for (int64_t m = 0; m < place_count; ++m) at[m] = places[m].n * view.n + places[m].h * view.h + places[m].w * view.w;
  if (view.c == 1) {
    for (int64_t m = 0; m < place_count; ++m) narrow_copy(base + at[m], tile + m * pitch, count);
    return;
  }
  for (int64_t m = 0; m < place_count;) {  // runs of columns that lie side by side
    int64_t run = 1;
    while (m + run < place_count && at[m + run] == at[m] + run) ++run;
    if (run > 1) {
      turn<A>(base + at[m], view.c, tile + m * pitch, pitch, run, count);
    } else {
      for (int64_t c = 0; c < count; ++c) base[c * view.c + at[m]] = narrow<T>(tile[m * pitch + c]);
    }
    m += run;
  }
}

template <class A>
using StoreTile = void (*)(const View&, const A*, int, const Place*, int64_t, int64_t, int64_t);

template <class A>
StoreTile<A> tile_storer(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> StoreTile<A> { return store_tile<A, decltype(element)>; });
}

// An epilogue that stores all there is, to a tensor whose groups have so many channels.
template <class A>
auto store_to(const View& view, int64_t group_channels, StoreTile<A> store_rows) {
  return [&view, group_channels, store_rows](const A* tile, int vectors, const Place* places, int64_t place_count,
                                             int64_t g, int64_t c0, int64_t count) {
    store_rows(view, tile, vectors, places, place_count, g * group_channels + c0, count);
  };
}

}  // namespace film::FILM_ISA
