// Sums over the positions of each unit of the weight gradient, and the gradients made of them: db, dgamma and dbeta.
#pragma once

#include <cmath>

#include "strip.h"

namespace film::FILM_ISA {

class UnitSums {
 public:
  enum Kind { u, g };  // sum_p u, sum_p g

  // There is room for `width` channels of each group. <W, U'> and the shift come in `parts` sums, each over some of the
  // source channels.
  UnitSums(const Problem& p, int64_t units_of_a_sample, int64_t width, int64_t parts = 1)
      : per_sample_(units_of_a_sample),
        units_(p.batch * units_of_a_sample),
        groups_(p.groups),
        width_(width),
        parts_(parts),
        data_((2 + parts) * units_ * groups_ * width),
        shifts_(parts * units_ * groups_ * width) {
    std::fill(shifts_ + 0, shifts_ + parts * units_ * groups_ * width, 0.0L);
  }

  double* at(Kind kind, int64_t unit, int64_t group) { return of_kind(kind, unit, group); }
  // <W, U'>
  double* product(int64_t part, int64_t unit, int64_t group) { return of_kind(2 + part, unit, group); }
  // <w, m> (centre.h), which is 0 until it is set
  long double* shift(int64_t part, int64_t unit, int64_t group) {
    return shifts_ + ((part * units_ + unit) * groups_ + group) * width_;
  }

  // db, dgamma and dbeta from the sums of the units, in their order.
  template <class A>
  void finish(const Problem& p, const GradWeightArgs& args, const Factors<A>& gamma) {
    with_storage<A>(p.dtype, [&](auto element) { store<decltype(element)>(p, args, gamma); });
  }

 private:
  double* of_kind(int64_t kind, int64_t unit, int64_t group) {
    return data_ + ((kind * units_ + unit) * groups_ + group) * width_;
  }

  template <class T, class A>
  void store(const Problem& p, const GradWeightArgs& args, const Factors<A>& gamma) {
    T *grad_bias = static_cast<T*>(args.grad_bias), *grad_gamma = static_cast<T*>(args.grad_gamma),
      *grad_beta = static_cast<T*>(args.grad_beta);
    const bool post = p.position == Position::post;
    const Factors<A> bias(p, args.bias, width_, A(0), A(0), /*per_sample=*/false);
    for (int64_t k = 0; k < p.out_channels; ++k) {
      const int64_t group = k / p.group_out(), c = k % p.group_out();
      long double total_bias = 0;
      for (int64_t n = 0; n < p.batch; ++n) {
        long double sum_u = 0, sum_g = 0, sum_product = 0, sum_shifted = 0;
        for (int64_t unit = n * per_sample_; unit < (n + 1) * per_sample_; ++unit) {
          sum_u += at(u, unit, group)[c];
          sum_g += at(g, unit, group)[c];
          if (grad_gamma == nullptr) continue;
          for (int64_t part = 0; part < parts_; ++part) {
            sum_product += product(part, unit, group)[c];
            sum_shifted += shift(part, unit, group)[c] * at(u, unit, group)[c];
          }
        }
        total_bias += gamma.at(n, group)[c] * sum_u;
        // g * relu(z) is NaN in plain PyTorch where g is not finite, though relu is off there and u is 0.
        if (post && p.lower_slope == 0) sum_product += 0 * sum_g;
        if (grad_gamma != nullptr)
          grad_gamma[n * p.out_channels + k] =
              narrow<T>(static_cast<A>(sum_product + (bias.at(0, group)[c] * sum_u + sum_shifted)));
        if (grad_beta != nullptr) grad_beta[n * p.out_channels + k] = narrow<T>(static_cast<A>(post ? sum_g : sum_u));
      }
      if (grad_bias != nullptr) grad_bias[k] = narrow<T>(static_cast<A>(total_bias));
    }
  }

  int64_t per_sample_, units_, groups_, width_, parts_;
  Scratch<double> data_;         // over many positions, where a float would lose digits that PyTorch's sums keep
  Scratch<long double> shifts_;  // as many as there are of <W, U'>
};

constexpr int64_t kMostChannels = 128;  // output channels that are summed together, at most

// Sums over positions, channel by channel. For float32 a double is exact enough. For doubles what each addition rounds
// off (Knuth's TwoSum) is summed too, and added at the end.
template <class A>
class ChannelSums {
 public:
  void add(const A* __restrict pixels, int64_t pitch, int64_t columns, int64_t channels) {
    for (int64_t w = 0; w < columns; ++w)
      for (int64_t c = 0; c < channels; ++c) {
        const double x = pixels[w * pitch + c], before = sum_[c];
        sum_[c] += x;
        if constexpr (std::is_same_v<A, double>) {
          const double part = sum_[c] - before;
          lost_[c] += (before - (sum_[c] - part)) + (x - part);
        }
      }
  }
  double at(int64_t c) const { return sum_[c] + (std::isfinite(lost_[c]) ? lost_[c] : 0); }

 private:
  double sum_[kMostChannels] = {}, lost_[kMostChannels] = {};
};

}  // namespace film::FILM_ISA
