// y = gamma * act(conv(x, W) + b) + beta, or act(gamma * (conv(x, W) + b) + beta), and the bits, in one pass.
#include "convolve.h"

namespace film::FILM_ISA {
namespace {

// The epilogue: z = tile + b, activation, FiLM and bits, then one store.
template <class A>
struct Modulate {
  const Problem& p;
  const ForwardArgs& args;
  const Factors<A>&bias, &gamma, &beta;
  StoreTile<A> store_rows;

  void operator()(A* tile, int vectors, const Row* rows, int64_t row_count, int64_t g, int64_t c0,
                  int64_t count) const {
    constexpr int L = kLanes<A>;
    const A lower = static_cast<A>(p.lower_slope);
    const bool linear = p.activation == Activation::none, post = p.position == Position::post;
    const Vector<A> zero{}, slope = splat<A>(lower);
    const A* b = bias.at(0, g) + c0;
    const int64_t k0 = g * p.group_out() + c0;
    for (int64_t m = 0; m < row_count; ++m) {
      const A *scale = gamma.at(rows[m].n, g) + c0, *shift = beta.at(rows[m].n, g) + c0;
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
void forward(const Problem& p, const ForwardArgs& args) {
  const LoadRow<A> load = row_loader<A>(p.dtype);
  Pass<A> pass{forward_taps(p.h), forward_taps(p.w), p.h.kernel * p.w.kernel * p.group_in(), {}};
  Scratch<A> weights(packed_size(pass, p.groups, p.group_out()));
  pack_weights<A>(weights, pass, args.weight, load, p.groups, p.group_in(), p.group_out(), false);
  const int64_t padded = Panels<A>{p.group_out()}.padded();
  const Factors<A> bias(p, args.bias, padded, A(0), A(0), /*per_sample=*/false);
  const Factors<A> gamma(p, args.gamma, padded, static_cast<A>(p.gamma_offset), A(1));
  const Factors<A> beta(p, args.beta, padded, A(0), A(0));
  // Where a byte holds bits of two groups, they are put in one after another, which needs zeros to start from.
  if (args.bits != nullptr && p.groups > 1) std::memset(args.bits, 0, p.positions() * p.bit_row());
  convolve(pass, p.batch, p.groups, p.group_in(), p.group_out(), Plain<A>{args.input, load},
           Modulate<A>{p, args, bias, gamma, beta, tile_storer<A>(p.dtype)});
}

}  // namespace

void run_forward(const Problem& p, const ForwardArgs& args) {
  p.dtype == DType::f64 ? forward<double>(p, args) : forward<float>(p, args);
}

}  // namespace film::FILM_ISA
