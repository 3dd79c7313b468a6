// The kernels of a processor that multiplies pairs of bfloat16 in the time of one product of float32: those of AVX-512,
// but for bfloat16's convolutions.
#include "convolve.h"
#include "flatten.h"
#include "forward_weights.h"
#include "grad_weight.h"
#include "library_is_faster.h"
#include "modulate.h"
#include "pair_positions.h"
#include "pair_source.h"
#include "pair_store.h"
#include "pair_tiles.h"
#include "pair_weights.h"
#include "stride_rows.h"
#include "table.h"

namespace film::FILM_ISA {

namespace {

// Where pairs are faster than the kernels for floats: where lanes, which are channels, are not mostly idle, and enough
// products are summed in each; not where Winograd's filtering takes most of the products away. (bench/NOTES.md has the
// figures.)
constexpr int64_t kLeastProducts = 16, kLeastProductsOfGradient = 24, kLeastLanes = 8, kLeastProductsOfIdleLanes = 128;
constexpr int64_t kLeastSourcesOfWeight = 8, kLeastProductsOfWeight = 48;

bool suits_pairs(const Problem& p, int64_t sources, int64_t products, int64_t lanes, int64_t least) {
  if (p.dtype != DType::bf16 || sources == 1 || lanes < kLeastLanes || is_filtered_to_a_third(p)) return false;
  return products >= (lanes < kLanes<Pair> ? kLeastProductsOfIdleLanes : least);
}

bool forward_suits(const Problem& p) {
  return suits_pairs(p, p.group_in(), p.group_in() * taps_of(p), p.group_out(), kLeastProducts);
}

// A pass has no more than its share of the taps where there is a stride.
bool grad_input_suits(const Problem& p) {
  const int64_t products = p.group_out() * taps_of(p) / (p.h.stride * p.w.stride);
  return suits_pairs(p, p.group_out(), products, p.group_in(), kLeastProductsOfGradient);
}

bool grad_weight_suits(const Problem& p, const GradWeightArgs& args) {
  return p.dtype == DType::bf16 && args.products_wanted() && p.group_in() >= kLeastSourcesOfWeight &&
         p.group_in() * taps_of(p) >= kLeastProductsOfWeight && !is_filtered_to_a_third(p);
}

Pass<Pair> forward_pairs(const Problem& p) {
  return {forward_taps(p.h), forward_taps(p.w), p.h.kernel * p.w.kernel * pairs_of(p.group_in()), {}};
}

int64_t packed_pairs(const Problem& p) { return packed_size(forward_pairs(p), p.groups, p.group_out()); }

template <class Engine>
void forward_by_pairs(const Problem& problem, const ForwardArgs& given) {
  if (!forward_suits(problem)) return run_forward(problem, given);
  Problem p = problem;
  ForwardArgs args = given;
  flatten(p, kOneRow, args.input, args.output);
  Pass<Pair> pass = forward_pairs(p);
  const int64_t size = packed_pairs(p);
  const auto* packed = reinterpret_cast<const Pair*>(packed_in<float>(args.packed, kPairsWay, size));
  Scratch<Pair> weights(packed == nullptr ? size : 0);
  if (packed != nullptr)
    point_at_weights<Pair>(pass, packed, p.groups, p.group_out());
  else
    pack_pairs(weights, pass, p, args.weight, /*transposed=*/false);
  const Modulation<float> by(p, args, Panels<float>{p.group_out()}.padded(), /*along=*/true);
  ModulateTile<float> epilogue = start_modulating(p, args, by);
  epilogue.store_rows = store_tile_as_pairs;
  convolve(pass, p.batch, p.groups, pairs_of(p.group_in()), p.group_out(), PlainPairs{args.input, p.group_in()},
           epilogue, PairTiles<Engine>());
}

template <class Engine>
void grad_input_by_pairs(const Problem& problem, const GradInputArgs& given) {
  if (!grad_input_suits(problem)) return run_grad_input(problem, given);
  Problem p = problem;
  GradInputArgs args = given;
  flatten(p, kOneRow, args.grad, args.grad_input);
  std::vector<Pass<Pair>> passes = grad_input_passes<Pair>(p, pairs_of(p.group_out()));
  int64_t size = 0;
  for (const Pass<Pair>& pass : passes) size += packed_size(pass, p.groups, p.group_in());
  Scratch<Pair> weights(size);
  Pair* packed = weights;
  for (Pass<Pair>& pass : passes) {
    pack_pairs(packed, pass, p, args.weight, /*transposed=*/true);
    packed += packed_size(pass, p.groups, p.group_in());
  }
  const int64_t width = round_up(p.group_out(), ModulatedPairs::kTogether);
  const Factors<float> gamma(p, args.gamma, width, static_cast<float>(p.gamma_offset), 1);
  run_passes<float>(p, args, passes, pairs_of(p.group_out()),
                    ModulatedPairs{p, args.grad, args.bits, gamma, p.group_out()}, store_tile_as_pairs,
                    PairTiles<Engine>());
}

template <class Engine>
void grad_weight_by_pairs(const Problem& problem, const GradWeightArgs& given) {
  if (grad_weight_suits(problem, given)) {
    Problem p = problem;
    GradWeightArgs args = given;
    flatten(p, kOneRow, args.grad, args.input);
    if (GradWeight<float, Engine>(p, args)()) return;
  }
  run_grad_weight(problem, given);
}

PackedWeight packing_of_pairs(const Problem& p, const View& weight) {
  if (!forward_suits(p)) return packing(p, weight);
  return {nullptr, kPairsWay, packed_pairs(p)};
}

void pack_as_pairs(const Problem& p, const PackArgs& args) {
  if (!forward_suits(p)) return run_pack(p, args);
  Pass<Pair> pass = forward_pairs(p);
  pack_pairs(static_cast<Pair*>(args.data), pass, p, args.weight, /*transposed=*/false);
}

template <class Engine>
constexpr Kernels with_pairs(const char* name) {
  return {name,
          forward_by_pairs<Engine>,
          packing_of_pairs,
          pack_as_pairs,
          grad_input_by_pairs<Engine>,
          grad_weight_by_pairs<Engine>,
          library_is_faster_than_pairs,
          run_norm_forward,
          run_norm_backward};
}

}  // namespace

extern const Kernels pair_kernels, emulated_pair_kernels;
const Kernels pair_kernels = with_pairs<ProcessorPairs>("avx512_bf16"),
              emulated_pair_kernels = with_pairs<EmulatedPairs>("emulated_avx512_bf16");

}  // namespace film::FILM_ISA
