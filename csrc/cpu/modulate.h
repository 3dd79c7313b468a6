// The epilogues of forward: z = conv(x, W) + b, activation and FiLM, and what is kept for backward, one store each.
//
// Of a piecewise-linear activation the bits are kept, and all is done in one loop here. Smooth ones are those of
// norm_film's passes over rows, in place of a tile that has z, which is kept itself.
#pragma once

#include <vector>

#include "convolve_planes.h"
#include "norm_rows.h"
#include "store_planes.h"
#include "store_tile.h"
#include "words.h"

namespace film::FILM_ISA {

// What the epilogue adds and multiplies by; `padded` as Factors has it, and `along` where the channels lie along the
// rows of a tile.
template <class A>
struct Modulation {
  Modulation(const Problem& p, const ForwardArgs& args, int64_t padded, bool along)
      : bias(p, args.bias, padded, A(0), A(0), /*per_sample=*/false),
        gamma(p, args.gamma, padded, static_cast<A>(p.gamma_offset), A(1)),
        beta(p, args.beta, padded, A(0), A(0)),
        smooth(has_slopes_of_bits(p.activation) ? nullptr : modulate_of<A>(p.activation, {along, along}, p.position)),
        post_(p.position == Position::post),
        zeros_(smooth == nullptr ? 0 : padded * p.groups, A(0)),
        ones_(smooth == nullptr || !post_ ? 0 : padded * p.groups, A(1)) {}

  // act and FiLM of rows that hold z, for a smooth activation. scale and shift have a number for each channel.
  void modulate_rows(int64_t count, int64_t columns, Rows<A> z, const A* scale, const A* shift, Rows<A> y) const {
    const A *zeros = zeros_.data(), *ones = ones_.data();
    const RowFactors<A> factors =
        post_ ? RowFactors<A>{zeros, nullptr, ones, zeros, scale, shift} : RowFactors<A>{zeros, nullptr, scale, shift};
    const Soon here{reinterpret_cast<const char*>(z.at), 0, 0};  // nothing that is not in the cache already
    smooth({count, columns, {z.at, z.pitch}, factors}, 0, y, here);
  }

  Factors<A> bias, gamma, beta;
  const Modulate<A> smooth;  // or null

 private:
  bool post_;
  std::vector<A> zeros_, ones_;  // in place of numbers that a smooth activation's pass takes beside FiLM's
};

// The output's view of where z is kept.
inline View view_of_z(const ForwardArgs& args) {
  View view = args.output;
  view.data = args.z;
  return view;
}

// The epilogue of a tile [position][channel].
template <class A>
struct ModulateTile {
  const Problem& p;
  const ForwardArgs& args;
  const Modulation<A>& by;
  StoreTile<A> store_rows;

  void operator()(A* tile, int vectors, const Place* places, int64_t place_count, int64_t g, int64_t c0,
                  int64_t count) const {
    const int64_t k0 = g * p.group_out() + c0;
    if (by.smooth != nullptr)
      modulate_smoothly(tile, vectors, places, place_count, g, c0, count);
    else
      modulate_and_put_bits(tile, vectors, places, place_count, g, c0, count);
    store_rows(args.output, tile, vectors, places, place_count, k0, count);
  }

 private:
  void modulate_and_put_bits(A* tile, int vectors, const Place* places, int64_t place_count, int64_t g, int64_t c0,
                             int64_t count) const {
    constexpr int L = kLanes<A>;
    const A lower = static_cast<A>(p.lower_slope);
    const bool linear = p.activation == Activation::none, post = p.position == Position::post;
    const Vector<A> zero{}, slope = splat<A>(lower);
    const A* b = by.bias.at(0, g) + c0;
    const int64_t k0 = g * p.group_out() + c0;
    for (int64_t m = 0; m < place_count; ++m) {
      const A *scale = by.gamma.at(places[m].n, g) + c0, *shift = by.beta.at(places[m].n, g) + c0;
      uint8_t* bits = args.bits;
      if (bits != nullptr) bits += ((places[m].n * p.h.out + places[m].h) * p.w.out + places[m].w) * p.bit_row();
      for (int v = 0; v < vectors; ++v) {
        A* at = tile + (m * vectors + v) * L;
        const Vector<A> f = load(scale + v * L), s = load(shift + v * L);
        Vector<A> y = load(at) + load(b + v * L);
        if (!post) y = f * y + s;
        const Mask<A> upper = ~(y <= zero);  // NaN is on the upper branch, so that it passes through
        if (!linear) y = upper ? y : (lower == 0 ? zero : slope * y);
        if (post) y = f * y + s;
        store(at, y);
        if (bits != nullptr) put_bits(bits, k0 + v * L, std::min<int64_t>(L, count - v * L), to_bits<A>(upper));
      }
    }
  }

  void modulate_smoothly(A* tile, int vectors, const Place* places, int64_t place_count, int64_t g, int64_t c0,
                         int64_t count) const {
    constexpr int L = kLanes<A>;
    const int64_t columns = vectors * L;
    const A* b = by.bias.at(0, g) + c0;
    for (int64_t m = 0; m < place_count; ++m)
      for (int64_t c = 0; c < columns; c += L)
        store(tile + m * columns + c, load(tile + m * columns + c) + load(b + c));
    if (args.z != nullptr)
      store_rows(view_of_z(args), tile, vectors, places, place_count, g * p.group_out() + c0, count);
    for (int64_t m = 0; m < place_count;) {  // those of one sample at a time
      const int64_t n = places[m].n;
      int64_t run = 1;
      while (m + run < place_count && places[m + run].n == n) ++run;
      const Rows<A> rows{tile + m * columns, columns};
      by.modulate_rows(run, columns, rows, by.gamma.at(n, g) + c0, by.beta.at(n, g) + c0, rows);
      m += run;
    }
  }
};

template <class A>
ModulateTile<A> start_modulating(const Problem& p, const ForwardArgs& args, const Modulation<A>& by) {
  // Where a byte holds bits of two groups, they are put in one after another, which needs zeros to start from.
  if (args.bits != nullptr && p.groups > 1) std::memset(args.bits, 0, p.positions() * p.bit_row());
  return {p, args, by, tile_storer<A>(p.dtype)};
}

// The same epilogue with columns in the lanes; the bits of a position's channels come together in words of 32. Where
// the output's columns lie side by side, in the type that is worked on, they are stored at once, else from the tile.
template <class A>
struct ModulatePlanes {
  static constexpr int64_t kWidth = kMostPlaneVectors * kLanes<A>;  // columns of a tile, at most

  const Problem& p;
  const ForwardArgs& args;
  const Modulation<A>& by;
  StorePlanes<A> store_columns;
  std::vector<int32_t> words = std::vector<int32_t>((p.out_channels + 31) / 32 * kWidth);
  const bool straight = args.output.w == 1 && (p.dtype == DType::f32 || p.dtype == DType::f64);

  void begin() { std::fill(words.begin(), words.end(), 0); }

  void operator()(A* tile, int vectors, const ColumnRun& run, const ChannelRange& channels) {
    const View& out = args.output;
    const int64_t width = vectors * kLanes<A>;
    A* place = static_cast<A*>(out.data) + run.n * out.n + run.h * out.h + run.first + channels.first * out.c;
    const Target to = straight ? Target{place, out.c, run.count} : Target{tile, width, width};
    if (by.smooth != nullptr)
      modulate_smoothly(tile, width, to, run, channels);
    else
      modulate_words(tile, vectors, to, run.n, channels);
    if (!straight) store_columns(out, tile, width, run, channels);
  }

  void end(const ColumnRun& run) {
    if (args.bits == nullptr) return;
    uint8_t* bits = args.bits + ((run.n * p.h.out + run.h) * p.w.out + run.first) * p.bit_row();
    for (int64_t byte = 0; byte < p.bit_row(); byte += 4)
      store_words(bits, words.data() + byte / 4 * kWidth, p.bit_row(), byte, run.count);
  }

 private:
  // Where results go: so many columns of each channel, whose rows are `pitch` elements apart.
  struct Target {
    A* at;
    int64_t pitch, columns;
  };

  void modulate_words(const A* tile, int vectors, const Target& to, int64_t n, const ChannelRange& channels) {
    const int64_t width = vectors * kLanes<A>;
    for (int64_t k = 0; k < channels.count;) {  // those of one word at a time
      const int64_t first = channels.first + k;
      const ChannelRange some{first, std::min(channels.count - k, 32 - first % 32)};
      const Target here{to.at + k * to.pitch, to.pitch, to.columns};
      if (vectors == 4)
        modulate<4>(tile + k * width, here, n, some);
      else
        modulate<2>(tile + k * width, here, n, some);
      k += some.count;
    }
  }

  // From the tile's rows of V vectors.
  template <int V>
  void modulate(const A* tile, Target to, int64_t n, const ChannelRange& channels) {
    constexpr int L = kLanes<A>;
    const A lower = static_cast<A>(p.lower_slope);
    const bool linear = p.activation == Activation::none, post = p.position == Position::post;
    const Vector<A> zero{}, slope = splat<A>(lower);
    Mask<A> bits[V] = {};
    for (int64_t k = channels.first; k < channels.first + channels.count; ++k, tile += V * L, to.at += to.pitch) {
      const int64_t g = k / p.group_out(), c = k % p.group_out();
      const Vector<A> b = splat(by.bias.at(0, g)[c]), f = splat(by.gamma.at(n, g)[c]), s = splat(by.beta.at(n, g)[c]);
      const Mask<A> bit = Mask<A>{} + int32_t(uint32_t(1) << k % 32);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Vector<A> y = load(tile + v * L) + b;
        if (!post) y = f * y + s;
        const Mask<A> upper = ~(y <= zero);
        if (!linear) y = upper ? y : (lower == 0 ? zero : slope * y);
        if (post) y = f * y + s;
        if (v * L < to.columns) store_part(to.at + v * L, y, to.columns - v * L);
        bits[v] |= upper & bit;
      }
    }
    if (args.bits == nullptr) return;
    for (int v = 0; v < V; ++v) add_words<A>(words.data() + channels.first / 32 * kWidth + v * L, bits[v]);
  }

  void modulate_smoothly(A* tile, int64_t width, const Target& to, const ColumnRun& run, const ChannelRange& channels) {
    constexpr int L = kLanes<A>;
    const A* bias = by.bias.at(0, 0) + channels.first;  // factors of all channels lie side by side
    for (int64_t k = 0; k < channels.count; ++k) {
      const Vector<A> b = splat(bias[k]);
      for (int64_t c = 0; c < width; c += L) store(tile + k * width + c, load(tile + k * width + c) + b);
    }
    if (args.z != nullptr) store_columns(view_of_z(args), tile, width, run, channels);
    by.modulate_rows(channels.count, to.columns, {tile, width}, by.gamma.at(run.n, 0) + channels.first,
                     by.beta.at(run.n, 0) + channels.first, {to.at, to.pitch});
  }
};

}  // namespace film::FILM_ISA
