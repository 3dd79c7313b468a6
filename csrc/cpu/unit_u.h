// u = g * slope(bits) of a unit of the weight gradient, as its register tiles read it, and the sums of g and u.
#pragma once

#include "blocks.h"
#include "ranges.h"
#include "unit_sums.h"

namespace film::FILM_ISA {

// Sums of g and u over a unit's positions, channel by channel. Without an activation both are the same.
template <class A>
struct GradientSums {
  ChannelSums<A> g, sloped;
  bool linear;
  double u(int64_t c) const { return linear ? g.at(c) : sloped.at(c); }
};

template <class A>
struct LoadUnitU {
  static constexpr int64_t kPixels = 32;  // positions that are loaded together

  const Problem& p;
  const GradWeightArgs& args;
  LoadRow<A> load;

  // Some channels to u[tile of channels][position][kGradRows], `padded` of them with zeros in those that do not exist.
  // `pixels` is room for kPixels positions with so many channels.
  GradientSums<A> operator()(A* u, A* pixels, const Extent& e, const ChannelRange& channels, int64_t padded) const {
    GradientSums<A> sums{{}, {}, p.activation == Activation::none};
    const int64_t tile_size = e.positions() * kGradRows;
    for (int64_t h = e.h0; h < e.h0 + e.rows; ++h)
      for (int64_t w = e.w0; w < e.w0 + e.columns; w += kPixels) {
        const int64_t columns = std::min(kPixels, e.w0 + e.columns - w);
        if (channels.count < padded) std::memset(pixels, 0, columns * padded * sizeof(A));
        load(pixels, padded, args.grad, {e.n0, h, w, columns}, channels);
        sums.g.add(pixels, padded, columns, channels.count);
        if (!sums.linear) {
          const uint8_t* bits = args.bits + ((e.n0 * p.h.out + h) * p.w.out + w) * p.bit_row();
          apply_bits<A>(pixels, padded, columns, channels.count, bits, p.bit_row(), channels.first,
                        static_cast<A>(p.lower_slope), nullptr);
          sums.sloped.add(pixels, padded, columns, channels.count);
        }
        for (int64_t i = 0; i < columns; ++i, u += kGradRows)
          for (int64_t c = 0; c < padded; c += kGradRows)
            std::memcpy(u + c / kGradRows * tile_size, pixels + i * padded + c, kGradRows * sizeof(A));
      }
    return sums;
  }
};

}  // namespace film::FILM_ISA
