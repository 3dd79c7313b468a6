// y = gamma * act(conv(x, W) + b) + beta, or act(gamma * (conv(x, W) + b) + beta), and the bits, in one pass.
#include "convolve_planes.h"
#include "flatten.h"
#include "planes_choice.h"
#include "store_planes.h"
#include "winograd.h"
#include "words.h"

namespace film::FILM_ISA {
namespace {

// What the epilogue adds and multiplies by; `padded` as Factors has it.
template <class A>
struct Modulation {
  Modulation(const Problem& p, const ForwardArgs& args, int64_t padded)
      : bias(p, args.bias, padded, A(0), A(0), /*per_sample=*/false),
        gamma(p, args.gamma, padded, static_cast<A>(p.gamma_offset), A(1)),
        beta(p, args.beta, padded, A(0), A(0)) {}
  Factors<A> bias, gamma, beta;
};

// The epilogue: z = tile + b, activation, FiLM and bits, then one store.
template <class A>
struct Modulate {
  const Problem& p;
  const ForwardArgs& args;
  const Modulation<A>& by;
  StoreTile<A> store_rows;

  void operator()(A* tile, int vectors, const Place* places, int64_t place_count, int64_t g, int64_t c0,
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
    store_rows(args.output, tile, vectors, places, place_count, k0, count);
  }
};

template <class A>
Modulate<A> start_modulating(const Problem& p, const ForwardArgs& args, const Modulation<A>& by) {
  // Where a byte holds bits of two groups, they are put in one after another, which needs zeros to start from.
  if (args.bits != nullptr && p.groups > 1) std::memset(args.bits, 0, p.positions() * p.bit_row());
  return {p, args, by, tile_storer<A>(p.dtype)};
}

template <class A>
void forward(const Problem& p, const ForwardArgs& args) {
  Pass<A> pass{forward_taps(p.h), forward_taps(p.w), p.h.kernel * p.w.kernel * p.group_in(), {}};
  Scratch<A> weights(packed_size(pass, p.groups, p.group_out()));
  pack_weights<A>(weights, pass, p, args.weight, /*transposed=*/false);
  const Modulation<A> by(p, args, Panels<A>{p.group_out()}.padded());
  convolve(pass, p.batch, p.groups, p.group_in(), p.group_out(), Plain<A>{args.input, row_loader<A>(p.dtype)},
           start_modulating(p, args, by));
}

// Returns whether it did: where a sum is not finite, all is to be computed directly.
template <class T>
bool forward_in_tiles(const Problem& p, const ForwardArgs& args) {
  const Pass<float> pass{forward_taps(p.h), forward_taps(p.w), 0, {}};
  const PointTile tile = point_tile<T>(p.dtype, /*of_gradient=*/false);
  const WinogradWeights<T> weights(tile, pass, p, args.weight, /*transposed=*/false);
  const Modulation<float> by(p, args, Panels<float>{p.group_out()}.padded());
  return convolve_winograd(tile, pass, weights, p.batch, p.groups, p.group_in(), p.group_out(),
                           Plain<float>{args.input, row_loader<float>(p.dtype)}, start_modulating(p, args, by));
}

// Returns whether it could and did.
bool forward_by_winograd(const Problem& p, const ForwardArgs& args) {
  const auto spread = [&] {
    const Plain<float> source{args.input, row_loader<float>(p.dtype)};
    return Spread(sample_source(source, p.batch, p.h.in, p.w.in, p.groups, p.group_in()),
                  sample_weight(p, args.weight, /*transposed=*/false));
  };
  return with_tiles<Square<2, 4>, Line<4, 3>>(p, pads_by_more_than_half(p), spread,
                                              [&](auto tiles) { return forward_in_tiles<decltype(tiles)>(p, args); });
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
    for (int64_t k = 0; k < channels.count;) {  // those of one word at a time
      const int64_t first = channels.first + k;
      const ChannelRange some{first, std::min(channels.count - k, 32 - first % 32)};
      const Target here{to.at + k * to.pitch, to.pitch, to.columns};
      if (vectors == 4)
        modulate<4>(tile + k * width, here, run.n, some);
      else
        modulate<2>(tile + k * width, here, run.n, some);
      k += some.count;
    }
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
};

template <class A>
void forward_in_planes(const Problem& p, const ForwardArgs& args) {
  Pass<A> pass{forward_taps(p.h), forward_taps(p.w), p.h.kernel * p.w.kernel * p.group_in(), {}};
  const PassSizes sizes{p.batch, p.groups, p.group_in(), p.group_out()};
  Scratch<A> weights(p.out_channels * pass.products);
  with_storage<A>(p.dtype, [&](auto element) {
    pack_plane_weights<A, decltype(element)>(weights, pass, args.weight, sizes, /*transposed=*/false);
  });
  const Modulation<A> by(p, args, p.group_out());
  convolve_planes(pass, sizes, PlainPlanes<A>{args.input, plane_loader<A>(p.dtype), p.in_channels},
                  ModulatePlanes<A>{p, args, by, plane_storer<A>(p.dtype)});
}

}  // namespace

void run_forward(const Problem& problem, const ForwardArgs& given) {
  if (forward_by_winograd(problem, given)) return;
  Problem p = problem;
  ForwardArgs args = given;
  flatten(p, kPlaneColumns, args.input, args.output);
  if (suits_planes(p, args.output, p.group_out(), p.group_in(), p.group_in() * p.h.kernel * p.w.kernel))
    return p.dtype == DType::f64 ? forward_in_planes<double>(p, args) : forward_in_planes<float>(p, args);
  flatten(p, kOneRow, args.input, args.output);
  p.dtype == DType::f64 ? forward<double>(p, args) : forward<float>(p, args);
}

}  // namespace film::FILM_ISA
