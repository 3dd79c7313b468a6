// y = gamma * act(conv(x, W) + b) + beta, or act(gamma * (conv(x, W) + b) + beta), and the bits, in one pass.
#include "flatten.h"
#include "planes.h"
#include "winograd.h"

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

  void operator()(A* tile, int vectors, const Row* rows, int64_t row_count, int64_t g, int64_t c0,
                  int64_t count) const {
    constexpr int L = kLanes<A>;
    const A lower = static_cast<A>(p.lower_slope);
    const bool linear = p.activation == Activation::none, post = p.position == Position::post;
    const Vector<A> zero{}, slope = splat<A>(lower);
    const A* b = by.bias.at(0, g) + c0;
    const int64_t k0 = g * p.group_out() + c0;
    for (int64_t m = 0; m < row_count; ++m) {
      const A *scale = by.gamma.at(rows[m].n, g) + c0, *shift = by.beta.at(rows[m].n, g) + c0;
      uint8_t* bits = args.bits;
      if (bits != nullptr) bits += ((rows[m].n * p.h.out + rows[m].h) * p.w.out + rows[m].w) * p.bit_row();
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
    store_rows(args.output, tile, vectors, rows, row_count, k0, count);
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
bool forward_by_winograd(const Problem& p, const ForwardArgs& args) {
  const Pass<float> pass{forward_taps(p.h), forward_taps(p.w), 0, {}};
  const WinogradWeights<T> weights(pass, p, args.weight, /*transposed=*/false);
  const Modulation<float> by(p, args, Panels<float>{p.group_out()}.padded());
  return convolve_winograd(pass, weights, p.batch, p.groups, p.group_in(), p.group_out(),
                           Plain<float>{args.input, row_loader<float>(p.dtype)}, start_modulating(p, args, by));
}

// The same epilogue with columns in the lanes; the bits of a position's channels come together in words of 32.
template <class A>
struct ModulatePlanes {
  using Word = typename VectorOf<A>::integer;
  const Problem& p;
  const ForwardArgs& args;
  const Modulation<A>& by;
  StorePlanes<A> store_columns;
  const Taps& w;
  std::vector<Word> words;

  static constexpr int64_t kWidth = 4 * kLanes<A>;  // columns of a tile, at most

  void begin() { std::fill(words.begin(), words.end(), Word(0)); }

  void operator()(A* tile, int vectors, int64_t n, int64_t h, int64_t i, int64_t count, int64_t k0, int64_t channels) {
    constexpr int L = kLanes<A>;
    const A lower = static_cast<A>(p.lower_slope);
    const bool linear = p.activation == Activation::none, post = p.position == Position::post;
    const Vector<A> zero{}, slope = splat<A>(lower);
    for (int64_t k = 0; k < channels; ++k) {
      const int64_t g = (k0 + k) / p.group_out(), c = (k0 + k) % p.group_out();
      const Vector<A> b = splat(by.bias.at(0, g)[c]), f = splat(by.gamma.at(n, g)[c]), s = splat(by.beta.at(n, g)[c]);
      Word* word = words.data() + (k0 + k) / 32 * kWidth;
      const Mask<A> bit = Mask<A>{} + static_cast<Word>(int32_t(uint32_t(1) << (k0 + k) % 32));
      for (int v = 0; v < vectors; ++v) {
        A* at = tile + (k * vectors + v) * L;
        Vector<A> y = load(at) + b;
        if (!post) y = f * y + s;
        const Mask<A> upper = ~(y <= zero);
        if (!linear) y = upper ? y : (lower == 0 ? zero : slope * y);
        if (post) y = f * y + s;
        store(at, y);
        if (args.bits != nullptr) {
          Mask<A> sum;
          std::memcpy(&sum, word + v * L, sizeof sum);
          sum |= upper & bit;
          std::memcpy(word + v * L, &sum, sizeof sum);
        }
      }
    }
    store_columns(args.output, tile, vectors * L, w, n, h, i, count, k0, channels);
  }

  void end(int64_t n, int64_t h, int64_t i, int64_t count) {
    if (args.bits == nullptr) return;
    uint8_t* bits = args.bits + ((n * p.h.out + h) * p.w.out + i) * p.bit_row();
    int32_t narrow_words[kWidth];
    for (int64_t byte = 0; byte < p.bit_row(); byte += 4) {
      for (int64_t j = 0; j < count; ++j) narrow_words[j] = static_cast<int32_t>(words[byte / 4 * kWidth + j]);
      store_words(bits, narrow_words, p.bit_row(), byte, count);
    }
  }
};

template <class A>
void forward_in_planes(const Problem& p, const ForwardArgs& args) {
  Pass<A> pass{forward_taps(p.h), forward_taps(p.w), p.h.kernel * p.w.kernel * p.group_in(), {}};
  Scratch<A> weights(p.out_channels * pass.products);
  pack_plane_weights<A>(weights, pass, args.weight, row_loader<A>(p.dtype), p.groups, p.group_in(), p.group_out(),
                        false);
  const Modulation<A> by(p, args, p.group_out());
  std::vector<typename VectorOf<A>::integer> words((p.out_channels + 31) / 32 * ModulatePlanes<A>::kWidth);
  convolve_planes(pass, p.batch, p.groups, p.group_in(), p.group_out(),
                  PlainPlanes<A>{args.input, plane_loader<A>(p.dtype), p.in_channels},
                  ModulatePlanes<A>{p, args, by, plane_storer<A>(p.dtype), pass.w, words});
}

}  // namespace

void run_forward(const Problem& problem, const ForwardArgs& args) {
  Problem p = problem;
  flatten(p, args.input, args.output);
  if (suits_planes(p, args.output, p.group_out(), p.group_in(), p.group_in() * p.h.kernel * p.w.kernel))
    p.dtype == DType::f64 ? forward_in_planes<double>(p, args) : forward_in_planes<float>(p, args);
  else if (!suits_winograd(p) ||
           !with_tiles<Tiles<2, 4>>(p, [&](auto t) { return forward_by_winograd<decltype(t)>(p, args); }))
    p.dtype == DType::f64 ? forward<double>(p, args) : forward<float>(p, args);
}

}  // namespace film::FILM_ISA
