// The factors of FiLM and of the normalisation's own affine, in the type of sums and side by side.
#pragma once

#include <cmath>
#include <vector>

#include "../norm_problem.h"
#include "kernels.h"
#include "norm_rows.h"
#include "scratch.h"
#include "strip.h"

namespace film::FILM_ISA {

// weight and bias (C), gamma + gamma_offset and beta (N, C), with what stands for those that are not given. The latter
// have the numbers of a sample side by side, or with `by_channel` those of a channel.
template <class A>
class FactorTable {
 public:
  FactorTable(const NormProblem& p, const NormFactors& by, bool by_channel = false)
      : channels_(p.channels),
        of_sample_(by_channel ? 1 : p.channels),
        of_channel_(by_channel ? p.batch : 1),
        count_(p.batch * p.channels),
        all_(2 * (channels_ + count_)) {
    fill(weight(), {by.weight.data, 0, by.weight.k}, p.parameter_dtype, 1, 1, 0);
    fill(bias(), {by.bias.data, 0, by.bias.k}, p.parameter_dtype, 1, 0, 0);
    fill(gamma(), by.gamma, p.dtype, p.batch, 1, p.gamma_offset);
    fill(beta(), by.beta, p.dtype, p.batch, 0, 0);
  }
  A* weight() const { return all_; }
  A* bias() const { return all_ + channels_; }
  A* gamma() const { return all_ + 2 * channels_; }
  A* beta() const { return gamma() + count_; }
  // Where in gamma and beta the number of a channel of a sample is.
  int64_t at(int64_t n, int64_t c) const { return n * of_sample_ + c * of_channel_; }

 private:
  void fill(A* to, const Matrix& from, DType dtype, int64_t rows, A missing, double offset) {
    if (from.data == nullptr) return std::fill_n(to, rows * channels_, missing + static_cast<A>(offset)), void();
    with_storage<A>(dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t n = 0; n < rows; ++n) {
        const T* source = static_cast<const T*>(from.data) + n * from.n;
        A* row = to + (rows > 1 ? at(n, 0) : 0);
        const int64_t step = rows > 1 ? of_channel_ : 1;
        if (from.k == 1 && step == 1)
          widen_copy(row, source, channels_);
        else
          for (int64_t c = 0; c < channels_; ++c) row[c * step] = widen<A>(source[c * from.k]);
      }
    });
    if (offset != 0)
      for (int64_t i = 0; i < rows * channels_; ++i) to[i] += static_cast<A>(offset);
  }

  int64_t channels_, of_sample_, of_channel_, count_;
  Scratch<A> all_;
};

// rstd from the second row of the statistics, and from eps.
inline double rstd_of(const NormProblem& p, double second) {
  if (p.norm == Norm::none) return 1;
  return 1 / (p.norm == Norm::l2 ? std::max(second, p.eps) : std::sqrt(second + p.eps));
}

// Statistics of one row or column after another, or the same of all.
struct Standing {
  const double *mean, *rstd;
};

// Where z = weight * x + bias is 0, or 0 where that is nowhere, or far away. Of an input that is not normalised it is
// taken first, in a mean's place: a mean that the bias takes away is gone then before anything is rounded. Otherwise
// the rounding of scale would be that of a large number, and the same at all positions, so that sums do not average it
// out.
template <class A>
inline A zero_of(A weight, A bias) {
  constexpr A kFar = A(1e18);
  const A zero = -bias / weight;
  return std::abs(zero) <= kFar ? zero : A(0);
}

// A part of a shift: where there is none, an infinite factor makes none of it either.
inline double shifted_by(double part, double factor) { return part == 0 ? 0 : part * factor; }

// What v is made with, a number for each row or column, as RowFactors names them; rstd is a part of scale.
template <class A>
class AffineTable {
 public:
  // With `backward` there is also what dx multiplies d with, and what makes z, which FiLM is given.
  AffineTable(const NormProblem& p, const FactorTable<A>& table, bool backward)
      : post_(p.position == Position::post),
        backward_(backward),
        normalises_(p.norm != Norm::none),
        table_(table),
        count_(p.batch * p.channels),
        all_((backward ? 6 : 3) * count_) {}

  // Of `count` of them, from `first` on; weight and bias, which stand from `channel` on, and statistics are a number
  // each, or the same for all.
  template <bool CHANNELS, bool STATISTICS>
  void set(int64_t first, int64_t count, int64_t channel, const Standing& by) const {
    A *mean = all_ + first, *scale = mean + count_, *shift = scale + count_;
    const A *w = table_.weight() + channel, *b = table_.bias() + channel;
    const A *gamma = table_.gamma() + first, *beta = table_.beta() + first;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = CHANNELS ? i : 0, s = STATISTICS ? i : 0;
      const double factor = post_ ? 1 : gamma[i], added = post_ ? 0 : beta[i], whole = w[c] * factor * by.rstd[s];
      mean[i] = normalises_ ? static_cast<A>(by.mean[s]) : zero_of(w[c], b[c]);
      scale[i] = static_cast<A>(whole);
      // With what the mean has beyond the digits of its type.
      shift[i] = static_cast<A>(shifted_by(b[c], factor) + added - shifted_by(by.mean[s] - mean[i], whole));
    }
    if (!backward_) return;
    A *more = shift + count_, *z_shift = more + count_, *summed = z_shift + count_;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = CHANNELS ? i : 0, s = STATISTICS ? i : 0;
      const double whole = w[c] * by.rstd[s];
      more[i] = static_cast<A>(post_ ? whole * gamma[i] : whole);
      z_shift[i] = b[c];
      summed[i] = normalises_ ? mean[i] : A(0);
    }
  }
  RowFactors<A> from(int64_t first) const {
    const A* at = all_ + first;
    return {at, nullptr, at + count_, at + 2 * count_, table_.gamma() + first, table_.beta() + first};
  }
  // The same for sums of d * xhat: those of an input that is not normalised are of the input as it is, for where the
  // weight is small the zero of z is far away, and the sums would be of large numbers.
  RowFactors<A> for_sums(int64_t first) const {
    RowFactors<A> by = from(first);
    by.mean = all_ + 5 * count_ + first;
    return by;
  }
  // What dx multiplies d with.
  const A* weight(int64_t first) const { return all_ + (post_ ? 3 : 1) * count_ + first; }
  // What z is made with; where FiLM comes after the activation it is v.
  MakesZ<A> of_z(int64_t first) const {
    const A* at = all_ + first;
    return {at + 3 * count_, at + 4 * count_};
  }

 private:
  bool post_, backward_, normalises_;
  const FactorTable<A>& table_;
  int64_t count_;
  Scratch<A> all_;
};

// What backward sums for each channel of each sample: d, d * xhat, and what more the factors' gradients are made of.
struct SumKinds {
  bool post;  // FiLM comes after the activation: grad, grad * act(v)
  bool of_z;  // d * z, for with a bias its two parts may be large where dgamma is small

  SumKinds(const NormProblem& p, const NormBackwardArgs& args)
      : post(p.position == Position::post && (args.grad_gamma != nullptr || args.grad_beta != nullptr)),
        of_z(p.position == Position::pre && args.grad_gamma != nullptr && args.by.bias.data != nullptr) {}
  int count() const { return post ? 4 : of_z ? 3 : 2; }
};

// The gradients of the factors, from these sums, in this order; they stand as gamma and beta do.
struct FactorSums {
  const double *d, *along, *third, *product;
};

template <class A>
void finish_factors(const NormProblem& p, const NormBackwardArgs& args, const FactorTable<A>& table,
                    const FactorSums& sums) {
  if (!args.sums_wanted()) return;
  const SumKinds kinds(p, args);
  const auto of_channels = [&](int64_t first, int64_t last, auto element) {
    using T = decltype(element);
    T *grad_gamma = static_cast<T*>(args.grad_gamma), *grad_beta = static_cast<T*>(args.grad_beta);
    std::vector<double> weight(last - first), bias(last - first);
    for (int64_t n = 0; n < p.batch; ++n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t at = table.at(n, c), to = n * p.channels + c;
        const double d = sums.d[at], along = sums.along[at], gamma = table.gamma()[at];
        weight[c - first] += gamma * along, bias[c - first] += gamma * d;
        const double of_film = kinds.post ? sums.product[at] : kinds.of_z ? sums.third[at] : table.weight()[c] * along;
        if (grad_gamma != nullptr) grad_gamma[to] = narrow<T>(static_cast<A>(of_film));
        if (grad_beta != nullptr) grad_beta[to] = narrow<T>(static_cast<A>(kinds.post ? sums.third[at] : d));
      }
    }
    with_storage<A>(p.parameter_dtype, [&](auto parameter) {
      using W = decltype(parameter);
      for (int64_t c = first; c < last; ++c) {
        if (args.grad_weight != nullptr)
          static_cast<W*>(args.grad_weight)[c] = narrow<W>(static_cast<A>(weight[c - first]));
        if (args.grad_bias != nullptr) static_cast<W*>(args.grad_bias)[c] = narrow<W>(static_cast<A>(bias[c - first]));
      }
    });
  };
  const auto body = [&](int64_t first, int64_t last) {
    with_storage<A>(p.dtype, [&](auto element) { of_channels(first, last, element); });
  };
  p.batch* p.channels < 8192 ? body(0, p.channels) : parallel(p.channels, body);
}

}  // namespace film::FILM_ISA
