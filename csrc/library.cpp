// The operators of the CPU library: tensors in, the Problem made, the kernels of the best instruction set called.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "tensors.h"

namespace film {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace baseline {
extern const Kernels kernels;
}

void parallel_for(int64_t count, void (*run)(int64_t, int64_t, void*), void* context) {
  if (count <= 1) {
    if (count == 1) run(0, 1, context);
    return;
  }
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, run, context));
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

namespace {

struct Candidate {
  const Kernels& kernels;
  bool supported;  // by this machine
};

// What the library carries, best first.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all{
#if defined(__x86_64__)
      {avx512::kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {baseline::kernels, true}};
  return all;
}

// FILM_KERNELS_CPU_ISA names one to use instead of the best, for tests; one that the machine lacks is not taken.
const Kernels& choose_kernels() {
  const char* wanted = std::getenv("FILM_KERNELS_CPU_ISA");
  for (const Candidate& c : candidates())
    if (c.supported && (wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, c.kernels.name) == 0))
      return c.kernels;
  return baseline::kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
                                   const std::vector<int64_t>& geometry, double lower_slope, double gamma_offset,
                                   bool keep) {
  const Problem p = problem_of(sizes_of(input), weight, dtype_of(input), geometry, lower_slope, gamma_offset);
  std::vector<int64_t> out{p.batch, p.out_channels};
  if (input.dim() == 4) out.push_back(p.h.out);
  out.push_back(p.w.out);
  const Tensor output = allocate(out, is_channels_last(input), input);
  keep = keep && p.activation != Activation::none;
  const Tensor bits = allocate({keep ? p.positions() : 0, p.bit_row()}, false, input, aoti_torch_dtype_uint8());
  if (p.positions() > 0)
    kernels().forward(p, {view_of(input), view_of(weight), view_of(output), matrix_of(bias), matrix_of(gamma),
                          matrix_of(beta), keep ? static_cast<uint8_t*>(bits.data_ptr()) : nullptr});
  return {output, bits};
}

Tensor grad_input(const Tensor& grad, const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& gamma,
                  const std::vector<int64_t>& input_size, bool channels_last, const std::vector<int64_t>& geometry,
                  double lower_slope, double gamma_offset) {
  const Problem p = problem_of(input_size, weight, dtype_of(grad), geometry, lower_slope, gamma_offset);
  Tensor result = allocate(input_size, channels_last, grad);
  if (p.positions() == 0) return torch::stable::zero_(result);
  kernels().grad_input(p, {view_of(grad), view_of(weight), view_of(result), matrix_of(gamma), bits_of(p, bits)});
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> grad_weight(const Tensor& grad, const Tensor& bits, const Tensor& input,
                                                       const Tensor& weight, const std::optional<Tensor>& bias,
                                                       const std::optional<Tensor>& gamma, bool weight_wanted,
                                                       bool bias_wanted, bool gamma_wanted, bool beta_wanted,
                                                       const std::vector<int64_t>& geometry, double lower_slope,
                                                       double gamma_offset) {
  const Problem p = problem_of(sizes_of(input), weight, dtype_of(input), geometry, lower_slope, gamma_offset);
  WeightGradients results(p, input, weight, is_channels_last(weight), weight_wanted, bias_wanted, gamma_wanted,
                          beta_wanted);
  if (p.positions() == 0)
    results.zero();
  else
    kernels().grad_weight(p, results.args(p, grad, bits, input, weight, bias, gamma));
  return results.all();
}

// "avx512 of avx512, avx2, baseline": the one in use, and all that were built.
std::string instruction_sets() {
  std::string text = kernels().name;
  const char* separator = " of ";
  for (const Candidate& c : candidates()) text += separator + std::string(c.kernels.name), separator = ", ";
  return text;
}

}  // namespace
}  // namespace film

STABLE_TORCH_LIBRARY(film_kernels_cpu, m) {
  m.def(
      "forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, int[] geometry, "
      "float lower_slope, float gamma_offset, bool keep) -> (Tensor, Tensor)");
  m.def(
      "grad_input(Tensor grad, Tensor bits, Tensor weight, Tensor? gamma, int[] input_size, bool channels_last, "
      "int[] geometry, float lower_slope, float gamma_offset) -> Tensor");
  m.def(
      "grad_weight(Tensor grad, Tensor bits, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, "
      "bool weight_wanted, bool bias_wanted, bool gamma_wanted, bool beta_wanted, int[] geometry, "
      "float lower_slope, float gamma_offset) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("instruction_sets() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&film::forward));
  m.impl("grad_input", TORCH_BOX(&film::grad_input));
  m.impl("grad_weight", TORCH_BOX(&film::grad_weight));
}

STABLE_TORCH_LIBRARY_IMPL(film_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", TORCH_BOX(&film::instruction_sets));
}
