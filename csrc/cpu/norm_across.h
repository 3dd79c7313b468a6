// What normalisation of the channels of each position has in common ("channel", "rms", "l2"), whichever way they lie in
// memory. All that a position needs is at hand at once, so that there is one pass over memory each way.
#pragma once

#include "norm_factors.h"

namespace film::FILM_ISA {

// scale and shift of v, without rstd; and what dx multiplies d with.
template <class A>
class Affine {
 public:
  Affine(const NormProblem& p, const FactorTable<A>& table, bool backward)
      : channels_(p.channels), factors_(p, table, backward) {
    const double zero = 0, one = 1;
    for (int64_t n = 0; n < p.batch; ++n)
      factors_.template set<true, false>(n * channels_, channels_, 0, {&zero, &one});
  }
  RowFactors<A> with(int64_t n, int64_t channel, const A* mean, const A* rstd) const {
    RowFactors<A> by = factors_.from(n * channels_ + channel);
    by.mean = mean, by.rstd = rstd;
    return by;
  }
  MakesZ<A> of_z(int64_t n, int64_t channel) const { return factors_.of_z(n * channels_ + channel); }
  const A* weight(int64_t n, int64_t channel) const { return factors_.weight(n * channels_ + channel); }
  // The same of dx, which is 0 where each element is its own mean.
  const A* weight_of_dx(const NormProblem& p, int64_t n, int64_t channel) const {
    static constexpr A kNone = 0;
    return p.is_constant() ? &kNone : weight(n, channel);
  }

 private:
  int64_t channels_;
  AffineTable<A> factors_;
};

// The statistics as they are kept.
template <class A>
struct Kept {
  A *mean, *second;  // mean is null where it is not taken

  Kept(const NormProblem& p, void* data)
      : mean(p.takes_mean() ? static_cast<A*>(data) : nullptr),
        second(static_cast<A*>(data) + (p.takes_mean() ? p.statistics() : 0)) {}
};

// constant and slope of dx at a position, from the sums over its channels.
template <class A>
void set_terms(const NormProblem& p, A second, A rstd, double all, double along, A* constant, A* slope) {
  const double size = p.norm == Norm::l2 ? 1 : static_cast<double>(p.channels);
  *constant = p.takes_mean() && !p.is_constant() ? static_cast<A>(rstd * all / size) : A(0);
  // A length below eps does not count, and so has no derivative.
  *slope = p.is_constant() || (p.norm == Norm::l2 && second < static_cast<A>(p.eps))
               ? A(0)
               : static_cast<A>(rstd * along / size);
}

}  // namespace film::FILM_ISA
