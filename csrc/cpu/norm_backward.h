// Backward where statistics and factors vary the same way, over some rows at a time: d, and from it dx.
#pragma once

#include <utility>

#include "norm_factors.h"
#include "norm_schedule.h"
#include "norm_sums.h"

namespace film::FILM_ISA {

// Rows of the tensors of backward, what v is made with there, and what is read after them.
template <class A>
struct BackwardRows {
  int64_t rows, columns;
  StoredRows input, grad, grad_input;
  RowFactors<A> by;
  BothSoon soon;
};

// A worker is what a thread works in: x, grad, d, product and out. With ALONG channels lie along a row.
template <class A, bool ALONG>
class BackwardOfRows {
 public:
  BackwardOfRows(const NormProblem& p, bool product)
      : p_(p), slope_(slope_of<A>(p.activation, {ALONG, ALONG}, product)) {}

  // d of some rows, and what it was made from.
  template <class Worker>
  std::pair<RowPass<A>, Rows<const A>> differentiate(const BackwardRows<A>& at, const Worker& worker, A* d) const {
    const RowPass<A> pass = pass_of(at, worker);
    const Rows<const A> grad = widened<A>(at.grad, p_.dtype, at.rows, at.columns, worker.grad);
    slope_(pass, p_.lower_slope, grad, {d, at.columns}, {worker.product, at.columns}, &at.soon);
    return {pass, grad};
  }

  // dx, from d as it was kept, or else made again.
  template <class Worker>
  void write_grad_input(const BackwardRows<A>& at, const Worker& worker, A* d, bool kept, const GradInput<A>& by,
                        const Soon& soon) const {
    const RowPass<A> pass = kept ? pass_of(at, worker) : differentiate(at, worker, d).first;
    const Rows<A> dx = target<A>(at.grad_input, p_.dtype, at.columns, worker.out);
    grad_input_rows<A, ALONG, ALONG>(pass, {d, at.columns}, by, dx, soon);
    narrow_rows(at.grad_input, p_.dtype, at.rows, at.columns, dx);
  }

  // The same where nothing is normalised, so that no sum is waited for. `weight` is what d is multiplied with.
  template <class Worker>
  void scale_to_grad_input(const BackwardRows<A>& at, const Worker& worker, const A* d, const A* weight) const {
    const Rows<A> dx = target<A>(at.grad_input, p_.dtype, at.columns, worker.out);
    scale_rows<A, ALONG>(at.rows, at.columns, {d, at.columns}, weight, dx);
    narrow_rows(at.grad_input, p_.dtype, at.rows, at.columns, dx);
  }

 private:
  template <class Worker>
  RowPass<A> pass_of(const BackwardRows<A>& at, const Worker& worker) const {
    return {at.rows, at.columns, widened<A>(at.input, p_.dtype, at.rows, at.columns, worker.x), at.by};
  }

  const NormProblem& p_;
  Slope<A> slope_;
};

// What a group sums of its channels: weight * d and weight * d * xhat.
struct GroupSums {
  double d = 0, along = 0;

  // Those of some channels, whose sums of d * xhat get their rstd on the way.
  template <class A>
  void add(int64_t channels, const A* weight, const double* of_d, double* of_xhat, double rstd) {
    for (int64_t first = 0; first < channels; first += kChain) {
      double some = 0, some_along = 0;
      for (int64_t c = first; c < std::min(first + kChain, channels); ++c) {
        of_xhat[c] *= rstd;
        some += weight[c] * of_d[c], some_along += weight[c] * of_xhat[c];
      }
      d += some, along += some_along;
    }
  }
};

// constant and slope of dx, for each channel of each sample: 0 where nothing is normalised.
template <class A>
class GradInputTerms {
 public:
  explicit GradInputTerms(const NormProblem& p)
      : is_constant_(p.is_constant()),
        normalises_(p.norm != Norm::none),
        constant_(p.batch * p.channels),
        slope_(p.batch * p.channels) {}

  void clear(int64_t first, int64_t channels) const { fill(first, channels, 0, 0); }
  // Of channels of a group of so many elements.
  void set(int64_t first, int64_t channels, const GroupSums& sums, int64_t size, double rstd) const {
    if (normalises_ && !is_constant_) fill(first, channels, sums.d / size, sums.along / size * rstd);
  }
  GradInput<A> from(int64_t first, const AffineTable<A>& factors) const {
    return {is_constant_ ? constant_ + first : factors.weight(first), constant_ + first, slope_ + first};
  }

 private:
  void fill(int64_t first, int64_t channels, double constant, double slope) const {
    std::fill_n(constant_ + first, channels, static_cast<A>(constant));
    std::fill_n(slope_ + first, channels, static_cast<A>(slope));
  }

  bool is_constant_, normalises_;
  Scratch<A> constant_, slope_;
};

}  // namespace film::FILM_ISA
