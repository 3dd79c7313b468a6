// dx = conv_transpose(gamma * u, W) with u = g * slope(bits); the product is formed while the gradient is loaded.
#include "convolve_planes.h"
#include "convolve_winograd.h"
#include "depthwise.h"
#include "flatten.h"
#include "modulated.h"
#include "planes_choice.h"
#include "store_planes.h"
#include "stride_rows.h"
#include "words.h"

namespace film::FILM_ISA {
namespace {

template <class A>
void grad_input(const Problem& p, const GradInputArgs& args) {
  std::vector<Pass<A>> passes = grad_input_passes<A>(p, p.group_out());
  int64_t size = 0;
  for (const Pass<A>& pass : passes) size += packed_size(pass, p.groups, p.group_in());
  Scratch<A> weights(size);
  A* packed = weights;
  for (Pass<A>& pass : passes) {
    pack_weights<A>(packed, pass, p, args.weight, /*transposed=*/true);
    packed += packed_size(pass, p.groups, p.group_in());
  }
  const Factors<A> gamma(p, args.gamma, p.group_out(), static_cast<A>(p.gamma_offset), A(1));
  const Modulated<A> source{p, args.grad, args.bits, &gamma, row_loader<A>(p.dtype)};
  run_passes<A>(p, args, passes, p.group_out(), source, tile_storer<A>(p.dtype), FloatTiles<A>());
}

// Returns whether it did: where a sum is not finite, all is to be computed directly.
template <class T>
bool grad_input_in_tiles(const Problem& p, const GradInputArgs& args) {
  const PointTile tile = point_tile<T>(p.dtype, /*of_gradient=*/true);
  const LoadRow<float> load = row_loader<float>(p.dtype);
  const Factors<float> gamma(p, args.gamma, p.group_out(), static_cast<float>(p.gamma_offset), 1);
  const Pass<float> pass{grad_input_taps(p.h, 0), grad_input_taps(p.w, 0), 0, {}};
  WinogradWeights<T> weights(tile, pass, p, args.weight, /*transposed=*/true);
  return convolve_winograd(tile, pass, weights, p.batch, p.groups, p.group_out(), p.group_in(),
                           Modulated<float>{p, args.grad, args.bits, &gamma, load},
                           store_to<float>(args.grad_input, p.group_in(), tile_storer<float>(p.dtype)));
}

// Returns whether it could and did.
bool grad_input_by_winograd(const Problem& p, const GradInputArgs& args) {
  const auto in_tiles = [&](auto tiles) { return grad_input_in_tiles<decltype(tiles)>(p, args); };
  // Where padding is not half of the kernel, plain PyTorch takes another way here too, either side of it.
  const bool unusual_padding = p.h.pad != p.h.kernel / 2 || p.w.pad != p.w.kernel / 2;
  const bool large = has_enough(p, 32, 1024) && !pads_by_more_than_half(p);
  const auto spread = [&] {
    const Factors<float> gamma(p, args.gamma, p.group_out(), static_cast<float>(p.gamma_offset), 1);
    const Modulated<float> source{p, args.grad, args.bits, &gamma, row_loader<float>(p.dtype)};
    Spread found(sample_source(source, p.batch, p.h.out, p.w.out, p.groups, p.group_out()),
                 sample_weight(p, args.weight, /*transposed=*/true));
    // Of small problems plain PyTorch's sums are so short that no tile keeps up with nearly constant filters: as of
    // products that are nearly all with 0.
    if (!large && found.coherence > kConstant) found.density = 0;
    return found;
  };
  return large ? with_tiles<Square<2, 4>, Line<2, 3>>(p, unusual_padding, spread, in_tiles)
               : with_tiles<Square<2, 2>, Line<2, 3>>(p, unusual_padding, spread, in_tiles);
}

// The planes of gamma * u.
template <class A>
struct ModulatedPlanes {
  const Problem& p;
  const GradInputArgs& args;
  const Factors<A>& gamma;  // of one group: all channels
  LoadPlanes<A> load;
  std::vector<int32_t> words;

  void operator()(A* dst, int64_t pitch, const ColumnRun& run) {
    words.resize(run.count);
    load(dst, pitch, args.grad, run, {0, p.out_channels});
    const uint8_t* bits = args.bits;
    if (bits != nullptr) bits += ((run.n * p.h.out + run.h) * p.w.out + run.first) * p.bit_row();
    apply_words(dst, pitch, run.count, p.out_channels, bits, p.bit_row(), words.data(), static_cast<A>(p.lower_slope),
                gamma.at(run.n, 0));
  }
};

template <class A>
struct StoreColumns {
  const View& view;
  StorePlanes<A> store_columns;

  void begin() {}
  void operator()(A* tile, int vectors, const ColumnRun& run, const ChannelRange& channels) {
    store_columns(view, tile, vectors * kLanes<A>, run, channels);
  }
  void end(const ColumnRun&) {}
};

template <class A>
void grad_input_in_planes(const Problem& p, const GradInputArgs& args) {
  Problem ungrouped = p;
  ungrouped.groups = 1;
  const Factors<A> gamma(ungrouped, args.gamma, p.out_channels, static_cast<A>(p.gamma_offset), A(1));
  const ModulatedPlanes<A> source{p, args, gamma, plane_loader<A>(p.dtype), {}};
  const StoreColumns<A> store{args.grad_input, plane_storer<A>(p.dtype)};
  const PassSizes sizes{p.batch, p.groups, p.group_out(), p.group_in()};
  for (int64_t fh = 0; fh < std::min(p.h.stride, p.h.in); ++fh)
    for (int64_t fw = 0; fw < std::min(p.w.stride, p.w.in); ++fw) {
      Pass<A> pass{grad_input_taps(p.h, fh), grad_input_taps(p.w, fw), 0, {}};
      pass.products = pass.h.offset.size() * pass.w.offset.size() * p.group_out();
      Scratch<A> weights(p.in_channels * pass.products);
      with_storage<A>(p.dtype, [&](auto element) {
        pack_plane_weights<A, decltype(element)>(weights, pass, args.weight, sizes, /*transposed=*/true);
      });
      convolve_planes(pass, sizes, source, store);
    }
}

int64_t taps_of_pass(const Axis& axis) { return (axis.kernel + axis.stride - 1) / axis.stride; }  // at most

}  // namespace

void run_grad_input(const Problem& problem, const GradInputArgs& given) {
  if (suits_depthwise(problem)) return run_depthwise_grad_input(problem, given);
  if (grad_input_by_winograd(problem, given)) return;
  Problem p = problem;
  GradInputArgs args = given;
  flatten(p, kPlaneColumns, args.grad, args.grad_input);
  const int64_t taps = taps_of_pass(p.h) * taps_of_pass(p.w);
  if (suits_planes(p, args.grad, p.group_in(), p.group_out(), p.group_out() * taps))
    return p.dtype == DType::f64 ? grad_input_in_planes<double>(p, args) : grad_input_in_planes<float>(p, args);
  flatten(p, kOneRow, args.grad, args.grad_input);
  p.dtype == DType::f64 ? grad_input<double>(p, args) : grad_input<float>(p, args);
}

}  // namespace film::FILM_ISA
