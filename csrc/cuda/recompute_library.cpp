// The operator of backward where nothing was kept (recompute.h). Its tensors are as those of `matrix` in library.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../tensors.h"
#include "device.h"
#include "packets.h"
#include "pass_results.h"
#include "recompute.h"
#include "served.h"

namespace film {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> recompute(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta, bool raw_wanted, bool bias_wanted,
    bool gamma_wanted, bool beta_wanted, const std::vector<int64_t>& geometry, const std::vector<double>& numbers) {
  const ForwardTensors t(input, weight, bias, gamma, beta, {geometry, numbers, true});
  const Problem& p = t.problem;
  check_served(p, true);
  const Shape shape = output_shape(p, t.weight);
  const Argument g = look_at("grad", grad);
  check_kind(g, t.input);
  check_shape(g, shape, "(N, K, *out)");
  for (const Argument* each : {&t.input, &t.weight, &g}) check_channels_last(*each);
  const OnDevice device(t.input);
  const cuda::Pass pass{p.batch,
                        p.out_channels,
                        p.h.out * p.w.out,
                        true,
                        p.dtype,
                        p.activation,
                        p.position == Position::post,
                        p.lower_slope,
                        p.gamma_offset,
                        t.bias,
                        t.gamma,
                        t.beta};
  const PassResults results(pass, shape, {raw_wanted, bias_wanted, gamma_wanted, beta_wanted}, t.input);
  if (p.positions() == 0) {
    results.zero();
    return results.all();
  }
  cuda::PassCut cut;
  check(cuda::recompute_cut(p, cut), "recompute");
  results.fill(cut, device.stream(), "recompute", [&](void* dz, const cuda::PassSums& sums) {
    return cuda::recompute(p, {t.input.data, t.weight.data, g.data, dz, t.bias, t.gamma, t.beta, sums},
                           device.stream());
  });
  return results.all();
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY_FRAGMENT(film_kernels_cuda, m) {
  m.def(
      "recompute(Tensor grad, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
      "bool raw_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, int[] geometry, float[] numbers) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

#ifdef FILM_EMULATED
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(film_kernels_cuda, CUDA, m) {
#endif
  m.impl("recompute", TORCH_BOX(&film::recompute));
}
