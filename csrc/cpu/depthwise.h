// Depthwise convolutions, in which each output channel is made of one input channel: lanes are neighbouring channels of
// all groups, each with a filter of its own. With so few products for an element, what takes the time is memory, and
// the way to it: sums stay in registers until their epilogue has stored them, and the input is read where it lies if
// its channels lie side by side (depthwise_rows.h).
#pragma once

#include <vector>

#include "../problem.h"
#include "strip.h"
#include "taps.h"

namespace film::FILM_ISA {

// Taps along an axis and strides that the register tiles are made for.
constexpr int64_t kMostDepthwiseTaps = 7, kMostDepthwiseStride = 2;
// With fewer channels most lanes are idle: of 2 a training step took longer than the library's.
constexpr int64_t kLeastDepthwiseChannels = 4;

// Whether the kernels here are made for it: forward, grad_input and grad_weight alike.
inline bool suits_depthwise(const Problem& p) {
  const auto fits = [](const Axis& axis) {
    return axis.kernel <= kMostDepthwiseTaps && axis.stride <= kMostDepthwiseStride &&
           (axis.dilation == 1 || axis.kernel == 1);
  };
  return p.groups >= kLeastDepthwiseChannels && p.group_in() == 1 && p.group_out() == 1 && fits(p.h) && fits(p.w);
}

void run_depthwise_forward(const Problem&, const ForwardArgs&);         // depthwise_forward.cpp
void run_depthwise_grad_input(const Problem&, const GradInputArgs&);    // depthwise_grad_input.cpp
void run_depthwise_grad_weight(const Problem&, const GradWeightArgs&);  // depthwise_grad_weight.cpp

// The same with all channels in one group, as rows and factors see them.
inline Problem without_groups(const Problem& p) {
  Problem together = p;
  together.groups = 1;
  return together;
}

// The filters of all channels as [tap][channel].
template <class A>
class DepthwiseFilters {
 public:
  DepthwiseFilters(const Problem& p, const View& weight)
      : channels_(p.out_channels), columns_(p.w.kernel), filters_(p.h.kernel * p.w.kernel * p.out_channels) {
    with_storage<A>(p.dtype, [&](auto element) { load<decltype(element)>(p, weight); });
  }

  A* all() const { return filters_; }
  A* at(int64_t kh, int64_t kw) const { return filters_ + (kh * columns_ + kw) * channels_; }

 private:
  template <class T>
  void load(const Problem& p, const View& weight) {
    const T* from = static_cast<const T*>(weight.data);
    const bool dense = weight.w == 1 && (p.h.kernel == 1 || weight.h == p.w.kernel);
    if (dense) return turn<A>(static_cast<A*>(filters_), channels_, from, weight.n, channels_, p.h.kernel * columns_);
    for (int64_t kh = 0; kh < p.h.kernel; ++kh)
      for (int64_t kw = 0; kw < columns_; ++kw)
        for (int64_t c = 0; c < channels_; ++c)
          at(kh, kw)[c] = widen<A>(from[c * weight.n + kh * weight.h + kw * weight.w]);
  }

  int64_t channels_, columns_;
  Scratch<A> filters_;
};

// One pass over the destination (taps.h), with its filters as [tap][channel], taps in the pass's order. A vector may be
// loaded that goes on past the last.
template <class A>
struct DepthwisePass {
  Taps h, w;
  std::vector<A> filters;

  DepthwisePass(const Taps& rows, const Taps& columns, const DepthwiseFilters<A>& all, int64_t channels)
      : h(rows), w(columns) {
    filters.reserve(h.kernel.size() * w.kernel.size() * channels + kLanes<A>);
    for (int64_t kh : h.kernel)
      for (int64_t kw : w.kernel) filters.insert(filters.end(), all.at(kh, kw), all.at(kh, kw) + channels);
    filters.resize(filters.size() + kLanes<A>);
  }
};

}  // namespace film::FILM_ISA
