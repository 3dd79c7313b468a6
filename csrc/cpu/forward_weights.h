// How forward reads its weight: which of Winograd's tiles serve, and what a weight is like that was packed beforehand.
#pragma once

#include "pack_weights.h"
#include "winograd.h"

namespace film::FILM_ISA {

// Calls body(tiles) with the tiles that serve forward, as with_tiles has it.
template <class Factors, class Body>
bool with_forward_tiles(const Problem& p, const Factors& spread, const Body& body) {
  if (with_tiles<Square<2, 4>, Line<4, 3>>(p, pads_by_more_than_half(p), spread, body)) return true;
  return with_strided_tiles(
      p, [&](auto tiles) { return (p.dtype != DType::f32 || spread().density >= kNotSparse) && body(tiles); });
}

template <class A>
Pass<A> forward_pass(const Problem& p) {
  return {forward_taps(p.h), forward_taps(p.w), p.h.kernel * p.w.kernel * p.group_in(), {}};
}

// PackedWeight::way of no elements at all, of panels for the register tile (pack_weights.h), of such panels of pairs
// (pair_weights.h), and of each of Winograd's tiles.
constexpr int64_t kUnpackedWay = 0, kPanelsWay = 1, kPairsWay = 2;
template <class T>
constexpr int64_t tiles_way() {
  return (((T::H::STRIDE * 10 + T::H::M) * 10 + T::H::R) * 10 + T::W::M) * 10 + T::W::R;
}

// The elements of a packed weight, where it was made in that way and for these sizes; otherwise null.
template <class A>
const A* packed_in(const PackedWeight& packed, int64_t way, int64_t elements) {
  return packed.way == way && packed.elements == elements ? static_cast<const A*>(packed.data) : nullptr;
}

}  // namespace film::FILM_ISA
