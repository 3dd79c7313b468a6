// dW, db, dgamma and dbeta: which of the ways to sum them serves.
#include "grad_weight.h"

#include "depthwise.h"
#include "flatten.h"
#include "planes_choice.h"
#include "winograd.h"

namespace film::FILM_ISA {

void run_grad_weight_in_planes(const Problem&, const GradWeightArgs&);    // grad_weight_planes.cpp
bool run_grad_weight_by_winograd(const Problem&, const GradWeightArgs&);  // grad_weight_winograd.cpp: whether it could

void run_grad_weight(const Problem& problem, const GradWeightArgs& given) {
  if (suits_depthwise(problem)) return run_depthwise_grad_weight(problem, given);
  if (given.products_wanted() && run_grad_weight_by_winograd(problem, given)) return;
  Problem p = problem;
  GradWeightArgs args = given;
  flatten(p, kPlaneColumns, args.grad, args.input);
  const int64_t stretch = p.w.dilation == 1 ? p.w.kernel * p.group_in() : p.group_in();
  if (!has_long_rows(p) && suits_planes(p, args.grad, stretch, p.group_in(), p.group_in() * p.h.kernel * p.w.kernel))
    return run_grad_weight_in_planes(p, args);
  flatten(p, kOneRow, args.grad, args.input);
  if (p.dtype == DType::f64)
    GradWeight<double>(p, args)();
  else
    GradWeight<float>(p, args)();
}

}  // namespace film::FILM_ISA
