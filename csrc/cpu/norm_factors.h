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

// weight and bias (C), gamma + gamma_offset and beta (N, C), with what stands for those that are not given.
template <class A>
class FactorTable {
 public:
  FactorTable(const NormProblem& p, const NormFactors& by)
      : channels_(p.channels), all_((2 + 2 * p.batch) * p.channels) {
    fill(weight(), by.weight, p.parameter_dtype, 1, 1, 0);
    fill(bias(), by.bias, p.parameter_dtype, 1, 0, 0);
    fill(gamma(0), by.gamma, p.dtype, p.batch, 1, p.gamma_offset);
    fill(beta(0), by.beta, p.dtype, p.batch, 0, 0);
  }
  A* weight() const { return all_; }
  A* bias() const { return all_ + channels_; }
  A* gamma(int64_t n) const { return all_ + (2 + 2 * n) * channels_; }
  A* beta(int64_t n) const { return gamma(n) + channels_; }

 private:
  void fill(A* to, const Matrix& from, DType dtype, int64_t rows, A missing, double offset) {
    const int64_t pitch = 2 * channels_;
    with_storage<A>(dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t n = 0; n < rows; ++n, to += pitch) {
        const T* source = static_cast<const T*>(from.data) + n * from.n;
        if (from.data == nullptr)
          std::fill_n(to, channels_, missing);
        else if (from.k == 1)
          widen_copy(to, source, channels_);
        else
          for (int64_t c = 0; c < channels_; ++c) to[c] = widen<A>(source[c * from.k]);
        if (offset != 0)
          for (int64_t c = 0; c < channels_; ++c) to[c] += static_cast<A>(offset);
      }
    });
  }

  int64_t channels_;
  Scratch<A> all_;
};

// Where v = scale * (x - mean) * rstd + shift has them, of one channel of one sample; rstd is not part of scale.
template <class A>
struct ChannelFactors {
  A scale, shift, after, plus;

  ChannelFactors(Position position, const FactorTable<A>& table, int64_t n, int64_t c)
      : scale(table.weight()[c]), shift(table.bias()[c]), after(table.gamma(n)[c]), plus(table.beta(n)[c]) {
    if (position == Position::post) return;
    scale *= after, shift = shift * after + plus;
  }
};

// rstd from the second row of the statistics, and from eps.
inline double rstd_of(const NormProblem& p, double second) {
  if (p.norm == Norm::none) return 1;
  return 1 / (p.norm == Norm::l2 ? std::max(second, p.eps) : std::sqrt(second + p.eps));
}

// What v and y are made with, a number for each row or column. With rstd as a part of scale, xhat is x - mean.
template <class A>
class AffineTable {
 public:
  explicit AffineTable(int64_t count) : count_(count), all_(5 * count) {}

  // `rest` is what the mean has beyond the digits of its type.
  void set(int64_t at, const ChannelFactors<A>& by, A mean, double rest, double rstd) const {
    const double scale = by.scale * rstd;
    const A all[] = {mean, static_cast<A>(scale), static_cast<A>(by.shift - scale * rest), by.after, by.plus};
    for (int i = 0; i < 5; ++i) all_[i * count_ + at] = all[i];
  }
  RowFactors<A> from(int64_t first) const {
    const A* at = all_ + first;
    return {at, nullptr, at + count_, at + 2 * count_, at + 3 * count_, at + 4 * count_};
  }

 private:
  int64_t count_;
  Scratch<A> all_;
};

// The gradients of the factors, from the sums of each channel of each sample.
struct FactorSums {
  const double *d, *along;        // sum d, sum d * xhat
  const double *grad, *product;   // sum grad, sum grad * act(v); of FiLM that comes after the activation
  int64_t of_sample, of_channel;  // how far it is from one to the next

  int64_t at(int64_t n, int64_t c) const { return n * of_sample + c * of_channel; }
};

template <class A>
void finish_factors(const NormProblem& p, const NormBackwardArgs& args, const FactorTable<A>& table,
                    const FactorSums& sums) {
  if (!args.sums_wanted()) return;
  const bool post = p.position == Position::post;
  const auto of_channels = [&](int64_t first, int64_t last, auto element) {
    using T = decltype(element);
    T *grad_gamma = static_cast<T*>(args.grad_gamma), *grad_beta = static_cast<T*>(args.grad_beta);
    std::vector<double> weight(last - first), bias(last - first);
    for (int64_t n = 0; n < p.batch; ++n) {
      const A* gamma = table.gamma(n);
      for (int64_t c = first; c < last; ++c) {
        const int64_t at = sums.at(n, c), to = n * p.channels + c;
        const double d = sums.d[at], along = sums.along[at];
        weight[c - first] += gamma[c] * along, bias[c - first] += gamma[c] * d;
        if (grad_gamma != nullptr)
          grad_gamma[to] =
              narrow<T>(static_cast<A>(post ? sums.product[at] : table.weight()[c] * along + table.bias()[c] * d));
        if (grad_beta != nullptr) grad_beta[to] = narrow<T>(static_cast<A>(post ? sums.grad[at] : d));
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
