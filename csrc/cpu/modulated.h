// The gradient as grad_input and grad_weight read it.
#pragma once

#include "strip.h"

namespace film::FILM_ISA {

// The rows of gamma * u, u = g * slope(bits); of u where gamma is null.
template <class A>
struct Modulated {
  const Problem& p;
  const View& grad;
  const uint8_t* all_bits;  // or null
  const Factors<A>* gamma;
  LoadRow<A> load;

  void operator()(A* dst, int64_t n, int64_t h, int64_t w0, int64_t w1, int64_t k0, int64_t channels) const {
    load(dst, channels, grad, n, h, w0, w1, k0, channels);
    const uint8_t* bits = all_bits;
    if (bits != nullptr) bits += ((n * p.h.out + h) * p.w.out + w0) * p.bit_row();
    apply_bits(dst, channels, w1 - w0, channels, bits, p.bit_row(), k0, static_cast<A>(p.lower_slope),
               gamma == nullptr ? nullptr : gamma->at(n, k0 / channels));
  }
};

}  // namespace film::FILM_ISA
