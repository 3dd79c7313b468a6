// y = gamma * act(conv(x, W) + b) + beta, or act(gamma * (conv(x, W) + b) + beta), and what is kept for backward (the
// bits, or for smooth activations z = conv(x, W) + b), in one pass.
#include "convolve_planes.h"
#include "convolve_winograd.h"
#include "depthwise.h"
#include "flatten.h"
#include "forward_weights.h"
#include "modulate.h"
#include "planes_choice.h"
#include "smooth_digits.h"

namespace film::FILM_ISA {
namespace {

template <class A>
void forward(const Problem& p, const ForwardArgs& args) {
  Pass<A> pass = forward_pass<A>(p);
  const int64_t size = packed_size(pass, p.groups, p.group_out());
  const A* packed = packed_in<A>(args.packed, kPanelsWay, size);
  Scratch<A> weights(packed == nullptr ? size : 0);
  if (packed != nullptr)
    point_at_weights<A>(pass, packed, p.groups, p.group_out());
  else
    pack_weights<A>(weights, pass, p, args.weight, /*transposed=*/false);
  const Modulation<A> by(p, args, Panels<A>{p.group_out()}.padded(), /*along=*/true);
  convolve(pass, p.batch, p.groups, p.group_in(), p.group_out(), Plain<A>{args.input, row_loader<A>(p.dtype)},
           start_modulating(p, args, by));
}

// Returns whether it did: where a sum is not finite, all is to be computed directly.
template <class T>
bool forward_in_tiles(const Problem& p, const ForwardArgs& args) {
  const Pass<float> pass = forward_pass<float>(p);
  const PointTile tile = point_tile<T>(p.dtype, /*of_gradient=*/false);
  const int64_t size = WinogradWeights<T>(p, /*transposed=*/false).elements();
  const float* packed = packed_in<float>(args.packed, tiles_way<T>(), size);
  auto weights = packed != nullptr ? WinogradWeights<T>(p, /*transposed=*/false, packed)
                                   : WinogradWeights<T>(tile, pass, p, args.weight, /*transposed=*/false);
  const Modulation<float> by(p, args, Panels<float>{p.group_out()}.padded(), /*along=*/true);
  return convolve_winograd(tile, pass, weights, p.batch, p.groups, p.group_in(), p.group_out(),
                           Plain<float>{args.input, row_loader<float>(p.dtype)}, start_modulating(p, args, by));
}

// Returns whether it could and did.
bool forward_by_winograd(const Problem& p, const ForwardArgs& args) {
  const auto spread = [&] {
    const Plain<float> source{args.input, row_loader<float>(p.dtype)};
    return Spread(sample_source(source, p.batch, p.h.in, p.w.in, p.groups, p.group_in()),
                  sample_weight(p, args.weight, /*transposed=*/false));
  };
  return with_forward_tiles(p, spread, [&](auto tiles) {
    if (!has_slopes_of_bits(p.activation) && !has_digits_for_smooth(p, args.input, spread)) return false;
    return forward_in_tiles<decltype(tiles)>(p, args);
  });
}

template <class A>
void forward_in_planes(const Problem& p, const ForwardArgs& args) {
  Pass<A> pass = forward_pass<A>(p);
  const PassSizes sizes{p.batch, p.groups, p.group_in(), p.group_out()};
  Scratch<A> weights(p.out_channels * pass.products);
  with_storage<A>(p.dtype, [&](auto element) {
    pack_plane_weights<A, decltype(element)>(weights, pass, args.weight, sizes, /*transposed=*/false);
  });
  const Modulation<A> by(p, args, p.group_out(), /*along=*/false);
  convolve_planes(pass, sizes, PlainPlanes<A>{args.input, plane_loader<A>(p.dtype), p.in_channels},
                  ModulatePlanes<A>{p, args, by, plane_storer<A>(p.dtype)});
}

}  // namespace

void run_forward(const Problem& problem, const ForwardArgs& given) {
  if (suits_depthwise(problem)) return run_depthwise_forward(problem, given);
  if (forward_by_winograd(problem, given)) return;
  Problem p = problem;
  ForwardArgs args = given;
  flatten(p, kPlaneColumns, args.input, args.output);
  if (suits_planes(p, args.output, p.group_out(), p.group_in(), p.group_in() * p.h.kernel * p.w.kernel))
    return p.dtype == DType::f64 ? forward_in_planes<double>(p, args) : forward_in_planes<float>(p, args);
  flatten(p, kOneRow, args.input, args.output);
  p.dtype == DType::f64 ? forward<double>(p, args) : forward<float>(p, args);
}

}  // namespace film::FILM_ISA
