// The kernels of a processor that multiplies tiles (AMX): those of AVX-512, but for what convolve_amx.h takes.
#include "amx_grad_weight.h"
#include "convolve_amx.h"
#include "flatten.h"
#include "forward_weights.h"
#include "library_is_faster.h"
#include "modulate.h"
#include "modulated.h"
#include "table.h"

namespace film::FILM_ISA {

namespace {

// Where tiles are faster than vectors: where more than three quarters of them are no padding, and so many products are
// summed for an element that turning it into limbs takes less. (bench/NOTES.md has the figures.)
constexpr int64_t kLeastProducts = 192, kLeastOfWeight = 288, kLeastPositionsOfWeight = 128;

bool fills_tiles(const Problem& p, int64_t sources, int64_t channels) {
  const int64_t with_padding = round_up(sources, kTileProducts) * round_up(channels, kTileSide);
  return p.dtype != DType::f64 && p.positions() >= kTileSide && 4 * sources * channels > 3 * with_padding;
}

bool forward_suits(const Problem& p) {
  return fills_tiles(p, p.group_in(), p.group_out()) && p.group_in() * taps_of(p) >= kLeastProducts;
}

// Of a stride only one residue at a time is written, for which channels should lie side by side.
bool grad_input_suits(const Problem& p, const View& grad_input) {
  return fills_tiles(p, p.group_out(), p.group_in()) && p.group_out() * taps_of(p) >= kLeastProducts &&
         (p.h.stride * p.w.stride == 1 || grad_input.c == 1);
}

// A stride would leave gaps between the positions that a tap reads.
bool grad_weight_suits(const Problem& p, const GradWeightArgs& args) {
  return fills_tiles(p, p.group_in(), p.group_out()) && p.group_in() * taps_of(p) >= kLeastOfWeight &&
         p.positions() >= kLeastPositionsOfWeight && p.h.stride * p.w.stride == 1 && args.grad_gamma == nullptr &&
         args.grad_weight.data != nullptr;
}

// Calls body(number of limbs) for those that hold what is stored in this type.
template <class Body>
auto with_limbs(DType dtype, const Body& body) {
  if (dtype == DType::bf16) return body(std::integral_constant<int, 1>());
  if (dtype == DType::f16) return body(std::integral_constant<int, 2>());
  return body(std::integral_constant<int, 3>());
}

int64_t limbs_of(DType dtype) {
  return with_limbs(dtype, [](auto limbs) -> int64_t { return limbs; });
}

// Of the gradient, into which slopes and gamma are multiplied in float32: of 16 bits more than they had, or what they
// had where nothing is multiplied in but 0 and 1.
template <class Body>
auto with_gradient_limbs(const Problem& p, const Matrix& gamma, const Body& body) {
  const bool as_it_is = gamma.data == nullptr && p.gamma_offset == 0 && (p.lower_slope == 0 || p.lower_slope == 1);
  if (p.dtype == DType::f32) return body(std::integral_constant<int, kMostLimbs>());
  if (p.dtype == DType::bf16 && as_it_is) return body(std::integral_constant<int, 1>());
  return body(std::integral_constant<int, 2>());
}

AmxLayout forward_layout(const Problem& p) {
  return {forward_pass<float>(p), p.groups, p.group_in(), p.group_out(), static_cast<int>(limbs_of(p.dtype))};
}

// What `packing` says: two limbs' elements in the room of a float.
int64_t packed_floats(const AmxLayout& layout) { return layout.size() / 2; }
int64_t amx_way(const Problem& p) { return 10 + limbs_of(p.dtype); }

template <class Engine>
bool forward_by_amx(const Problem& problem, const ForwardArgs& given) {
  if (!forward_suits(problem)) return false;
  Problem p = problem;
  ForwardArgs args = given;
  flatten(p, kOneRow, args.input, args.output);
  const Pass<float> pass = forward_pass<float>(p);
  const AmxLayout layout = forward_layout(p);
  const auto* packed =
      reinterpret_cast<const uint16_t*>(packed_in<float>(args.packed, amx_way(p), packed_floats(layout)));
  const Modulation<float> by(p, args, layout.panels.padded(), /*along=*/true);
  return with_limbs(p.dtype, [&](auto limbs) {
    return convolve_amx<Engine, limbs, limbs>(
        pass, AmxWeights<limbs>{layout, pass, p, args.weight, /*transposed=*/false, packed}, p.batch,
        Plain<float>{args.input, row_loader<float>(p.dtype)}, start_modulating(p, args, by));
  });
}

template <class Engine>
bool grad_input_by_amx(const Problem& problem, const GradInputArgs& given) {
  if (!grad_input_suits(problem, given.grad_input)) return false;
  Problem p = problem;
  GradInputArgs args = given;
  flatten(p, kOneRow, args.grad, args.grad_input);
  const Factors<float> gamma(p, args.gamma, p.group_out(), static_cast<float>(p.gamma_offset), 1);
  const Modulated<float> source{p, args.grad, args.bits, &gamma, row_loader<float>(p.dtype)};
  for (int64_t fh = 0; fh < std::min(p.h.stride, p.h.in); ++fh)
    for (int64_t fw = 0; fw < std::min(p.w.stride, p.w.in); ++fw) {
      Pass<float> pass{grad_input_taps(p.h, fh), grad_input_taps(p.w, fw), 0, {}};
      const bool done = with_limbs(p.dtype, [&](auto limbs) {
        const AmxLayout layout(pass, p.groups, p.group_out(), p.group_in(), limbs);
        const AmxWeights<limbs> weights{layout, pass, p, args.weight, /*transposed=*/true};
        const auto store = store_to<float>(args.grad_input, p.group_in(), tile_storer<float>(p.dtype));
        return with_gradient_limbs(p, args.gamma, [&](auto of_gradient) {
          return convolve_amx<Engine, of_gradient, limbs>(pass, weights, p.batch, source, store);
        });
      });
      if (!done) return false;
    }
  return true;
}

template <class Engine>
void forward_with_amx(const Problem& p, const ForwardArgs& args) {
  if (!forward_by_amx<Engine>(p, args)) run_forward(p, args);
}

template <class Engine>
void grad_input_with_amx(const Problem& p, const GradInputArgs& args) {
  if (!grad_input_by_amx<Engine>(p, args)) run_grad_input(p, args);
}

// Returns whether it could and did.
template <class Engine>
bool grad_weight_by_amx(const Problem& problem, const GradWeightArgs& given) {
  if (!grad_weight_suits(problem, given)) return false;
  Problem p = problem;
  GradWeightArgs args = given;
  if (given.grad_beta != nullptr) args.grad_bias = nullptr;  // it comes with dbeta
  flatten(p, kOneRow, args.grad, args.input);
  const bool done = with_limbs(p.dtype, [&](auto limbs) {
    return with_gradient_limbs(p, args.gamma, [&](auto of_gradient) {
      using Sums = GradWeightAmx<Engine, limbs, of_gradient>;
      return Sums::suits(p) && Sums(p, args)();
    });
  });
  if (!done) return false;
  if (given.grad_beta != nullptr) {  // a sum of the gradient alone
    GradWeightArgs sums = given;
    sums.grad_weight.data = nullptr;
    run_grad_weight(problem, sums);
  }
  return true;
}

template <class Engine>
void grad_weight_with_amx(const Problem& p, const GradWeightArgs& args) {
  if (!grad_weight_by_amx<Engine>(p, args)) run_grad_weight(p, args);
}

// Limbs are more bytes than the weight, most of the time of a call that reads it once. Such a call splits it itself.
bool is_packed_at_every_call(const Problem& p) {
  const AmxLayout layout = forward_layout(p);
  return p.dtype != DType::bf16 && is_cut_by_panels(forward_pass<float>(p), p.batch, layout, layout.limbs);
}

PackedWeight amx_packing(const Problem& p, const View& weight) {
  if (!forward_suits(p)) return packing(p, weight);
  if (is_packed_at_every_call(p)) return {nullptr, kUnpackedWay, 0};
  return {nullptr, amx_way(p), packed_floats(forward_layout(p))};
}

void pack_for_amx(const Problem& p, const PackArgs& args) {
  if (!forward_suits(p)) return run_pack(p, args);
  with_limbs(p.dtype, [&](auto limbs) {
    const Pass<float> pass = forward_pass<float>(p);
    AmxWeights<limbs>{forward_layout(p), pass, p, args.weight, /*transposed=*/false}.pack(
        static_cast<uint16_t*>(args.data));
  });
}

bool library_is_faster_than_amx(const Problem& p, const Asked& asked) {
  if (p.dtype != DType::f32 || !forward_suits(p) || has_far_taps(p)) return library_is_faster(p, asked);
  return asked.use != Use::film && is_slow_alone(p, asked, kProductsByTiles);
}

template <class Engine>
constexpr Kernels with_amx(const char* name) {
  return {name,
          forward_with_amx<Engine>,
          amx_packing,
          pack_for_amx,
          grad_input_with_amx<Engine>,
          grad_weight_with_amx<Engine>,
          library_is_faster_than_amx,
          run_norm_forward,
          run_norm_backward};
}

}  // namespace

extern const Kernels amx_kernels, emulated_amx_kernels;
const Kernels amx_kernels = with_amx<Amx>("amx"), emulated_amx_kernels = with_amx<EmulatedAmx>("emulated_amx");

}  // namespace film::FILM_ISA
