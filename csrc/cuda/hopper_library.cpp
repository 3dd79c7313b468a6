// The operators of the convolution by Hopper's own instructions (hopper.h). Whether and in which tiles it would serve
// is told everywhere; `hopper_forward` is there where the library was built with it (FILM_HOPPER, setup.py).
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../tensors.h"
#include "device.h"
#include "hopper.h"
#include "packets.h"

namespace film {
namespace {

// Why it does not serve a convolution of these sizes, or nothing. `dtype` is that of all tensors.
std::string hopper_why_not(const std::vector<int64_t>& input_size, const std::vector<int64_t>& weight_size,
                           torch::headeronly::ScalarType dtype, const std::vector<int64_t>& geometry,
                           const std::vector<double>& numbers) {
  const auto rank = static_cast<int64_t>(weight_size.size());
  if (rank != 4) return "it serves 2d convolutions";
  const Argument weight{"weight_size", rank, weight_size.data(), nullptr, static_cast<int32_t>(dtype), 0, 0, nullptr};
  const Shape input = input_shape("input_size", input_size.data(), static_cast<int64_t>(input_size.size()), weight);
  const char* reason = cuda::hopper::why_not(problem_of(input, weight, {geometry, numbers}));
  return reason != nullptr ? reason : "";
}

void check_positive(const char* name, int64_t value) {
  STD_TORCH_CHECK(value >= 1 && value <= kMostAlong, "film_kernels: ", name, " must be from 1 to ", kMostAlong,
                  ", got ", value);
}

// The place of the tile in cuda::hopper::kTiles.
int64_t hopper_tile(int64_t positions, int64_t channels, int64_t multiprocessors) {
  check_positive("positions", positions);
  check_positive("channels", channels);
  check_positive("multiprocessors", multiprocessors);
  STD_TORCH_CHECK(is_within(kMostElements, {positions, channels}), "film_kernels: positions are too many");
  return cuda::hopper::tile_for(positions, channels, multiprocessors);
}

#ifdef FILM_HOPPER
// As `forward` of the other families; `tile` is a place in cuda::hopper::kTiles, or -1 for the one of hopper_tile.
std::tuple<Tensor, Tensor> hopper_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                          const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                          const std::vector<int64_t>& geometry, const std::vector<double>& numbers,
                                          bool keep, int64_t tile) {
  const ForwardTensors t(input, weight, bias, gamma, beta, {geometry, numbers});
  const Problem& p = t.problem;
  STD_TORCH_CHECK(t.weight.rank == 4, "film_kernels: weight must have two kernel sizes");
  STD_TORCH_CHECK(tile >= -1 && tile < cuda::hopper::kTileCount, "film_kernels: tile must be from -1 to ",
                  cuda::hopper::kTileCount - 1, ", got ", tile);
  const OnDevice device(t.input);
  const Tensor output = allocate(output_shape(p, t.weight), true, t.input.dtype, t.input);
  keep = keep && p.activation != Activation::none;
  const Tensor bits = allocate_bits(p, keep, t.input);
  if (p.positions() == 0) return {output, bits};
  const char* reason = cuda::hopper::why_not(p);
  STD_TORCH_CHECK(reason == nullptr, "film_kernels: hopper_forward: ", reason);
  check_channels_last(t.input);
  check_channels_last(t.weight);
  check_rows_of_packets("bias", t.bias, p.dtype);
  check_rows_of_packets("gamma", t.gamma, p.dtype);
  check_rows_of_packets("beta", t.beta, p.dtype);
  if (tile < 0) {
    int multiprocessors;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device.index), "hopper_forward");
    tile = cuda::hopper::tile_for(p.positions(), p.out_channels, multiprocessors);
  }
  const ForwardArgs args{view_of(t.input),
                         view_of(t.weight),
                         view_of(output),
                         t.bias,
                         t.gamma,
                         t.beta,
                         keep ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr};
  const auto start = p.dtype == DType::bf16 ? cuda::hopper::forward_bf16 : cuda::hopper::forward_f16;
  check(start(p, args, static_cast<int>(tile), device.stream()), "hopper_forward");
  return {output, bits};
}
#endif

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cuda, m) {
  m.def(
      "hopper_why_not(int[] input_size, int[] weight_size, ScalarType dtype, int[] geometry, float[] numbers) -> str");
  m.def("hopper_tile(int positions, int channels, int multiprocessors) -> int");
#ifdef FILM_HOPPER
  m.def(
      "hopper_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float[] numbers, bool keep, int tile) -> (Tensor, Tensor)");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("hopper_why_not", TORCH_BOX(&film::hopper_why_not));
  m.impl("hopper_tile", TORCH_BOX(&film::hopper_tile));
}

#ifdef FILM_HOPPER
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CUDA, m) { m.impl("hopper_forward", TORCH_BOX(&film::hopper_forward)); }
#endif
