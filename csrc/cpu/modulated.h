// The gradient as grad_input and grad_weight read it.
#pragma once

#include "strip.h"

namespace film::FILM_ISA {

// A source of strips: gamma * u with u = g * slope(bits), or u where gamma is null.
template <class A>
struct Modulated {
  const Problem& p;
  const View& grad;
  const uint8_t* all_bits;  // or null
  const Factors<A>* gamma;
  LoadRow<A> load;

  // The channels are all those of a group.
  void operator()(A* dst, const ColumnRun& run, const ChannelRange& channels) const {
    load(dst, channels.count, grad, run, channels);
    const uint8_t* bits = all_bits;
    if (bits != nullptr) bits += ((run.n * p.h.out + run.h) * p.w.out + run.first) * p.bit_row();
    apply_bits(dst, channels.count, run.count, channels.count, bits, p.bit_row(), channels.first,
               static_cast<A>(p.lower_slope),
               gamma == nullptr ? nullptr : gamma->at(run.n, channels.first / channels.count));
  }
};

// Where it is read from.
template <class A>
const View& tensor_of(const Modulated<A>& source) {
  return source.grad;
}

}  // namespace film::FILM_ISA
