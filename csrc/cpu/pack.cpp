// A weight packed for forward once, for calls that then need not do it. Which way that is depends on the sizes and on
// the weight; where the data of a call asks for another, that call packs for itself.
#include "depthwise.h"
#include "forward_weights.h"

namespace film::FILM_ISA {
namespace {

// As for data without zeros, in which all channels count alike.
template <class Body>
bool with_expected_tiles(const Problem& p, const View& weight, const Body& body) {
  const auto spread = [&] {
    return Spread({1, 0, std::vector<float>(p.in_channels, 1)}, sample_weight(p, weight, /*transposed=*/false));
  };
  return with_forward_tiles(p, spread, body);
}

template <class A>
int64_t panels_size(const Problem& p) {
  return packed_size(forward_pass<A>(p), p.groups, p.group_out());
}

template <class A>
void pack_panels(const Problem& p, const PackArgs& args) {
  Pass<A> pass = forward_pass<A>(p);
  pack_weights(static_cast<A*>(args.data), pass, p, args.weight, /*transposed=*/false);
}

}  // namespace

PackedWeight packing(const Problem& p, const View& weight) {
  if (suits_depthwise(p)) return {nullptr, kUnpackedWay, 0};  // a few products of each channel
  PackedWeight found{nullptr, kPanelsWay, p.dtype == DType::f64 ? panels_size<double>(p) : panels_size<float>(p)};
  with_expected_tiles(p, weight, [&](auto tiles) {
    using T = decltype(tiles);
    found = {nullptr, tiles_way<T>(), WinogradWeights<T>(p, /*transposed=*/false).elements()};
    return true;
  });
  return found;
}

void run_pack(const Problem& p, const PackArgs& args) {
  const bool done = with_expected_tiles(p, args.weight, [&](auto tiles) {
    using T = decltype(tiles);
    const PointTile tile = point_tile<T>(p.dtype, /*of_gradient=*/false);
    const Pass<float> pass = forward_pass<float>(p);
    WinogradWeights<T>(tile, pass, p, args.weight, /*transposed=*/false).transform(static_cast<float*>(args.data));
    return true;
  });
  if (done) return;
  p.dtype == DType::f64 ? pack_panels<double>(p, args) : pack_panels<float>(p, args);
}

}  // namespace film::FILM_ISA
