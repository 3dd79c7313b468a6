// norm_film: which driver serves a problem.
#include "norm_kernels.h"

namespace film::FILM_ISA {
namespace {

template <class A>
void forward(const NormProblem& p, const NormForwardArgs& args) {
  const bool pixels = args.output.c == 1;
  const auto driver = p.is_of_positions() ? (pixels ? forward_across_pixels<A> : forward_across_planes<A>)
                                          : (pixels ? forward_of_pixels<A> : forward_of_planes<A>);
  driver(p, args);
}

template <class A>
void backward(const NormProblem& p, const NormBackwardArgs& args) {
  const bool pixels = args.input.c == 1;
  const auto driver = p.is_of_positions() ? (pixels ? backward_across_pixels<A> : backward_across_planes<A>)
                                          : (pixels ? backward_of_pixels<A> : backward_of_planes<A>);
  driver(p, args);
}

}  // namespace

void run_norm_forward(const NormProblem& p, const NormForwardArgs& args) {
  p.dtype == DType::f64 ? forward<double>(p, args) : forward<float>(p, args);
}

void run_norm_backward(const NormProblem& p, const NormBackwardArgs& args) {
  p.dtype == DType::f64 ? backward<double>(p, args) : backward<float>(p, args);
}

}  // namespace film::FILM_ISA
