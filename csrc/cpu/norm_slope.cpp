// Backward over rows, as far as the activation: what it was given is made again from x.
#include "norm_rows.h"

namespace film::FILM_ISA {
namespace {

// As PyTorch has it, relu lets nothing of an infinite gradient through.
template <class Act, class A>
Vector<A> times(Vector<A> grad, Vector<A> slope) {
  if constexpr (std::is_same_v<Act, Relu>) return slope == 0 ? Vector<A>{} : grad;
  return grad * slope;
}

template <class A, bool STATISTICS, bool FACTORS, bool PRODUCT, class Act>
void slope(const RowPass<A>& pass, double lower_slope, Rows<const A> grad, Rows<A> d, Rows<A> product,
           const BothSoon* soon) {
  const Act act(lower_slope);
  for (int64_t r = 0; r < pass.rows; ++r) {
    const Normalised<A, STATISTICS, FACTORS> xhat(pass, r);
    const Factor<A, FACTORS> scale(pass.by.scale, r), shift(pass.by.shift, r);
    const A* g = grad.row(r);
    A *out = d.row(r), *other = PRODUCT ? product.row(r) : nullptr;
    for_vectors<A>(pass.columns, [&](int64_t c, const auto& memory) {
      const Vector<A> v = scale.get(c, memory) * xhat.get(c, memory) + shift.get(c, memory), up = memory.load(g + c);
      if (soon != nullptr) soon->fetch(r, c);
      if constexpr (PRODUCT) {
        const ValueAndSlope<A> found = act.template both<A>(v);
        memory.store(out + c, times<Act, A>(up, found.slope));
        memory.store(other + c, up * found.value);
      } else {
        memory.store(out + c, times<Act, A>(up, act.template slope<A>(v)));
      }
    });
  }
}

template <class A, bool STATISTICS, bool FACTORS>
Slope<A> slope_along(Activation activation, bool product) {
  Slope<A> found = nullptr;
  with_activation(activation, 0, [&](auto act) {
    using Act = decltype(act);
    found = product ? slope<A, STATISTICS, FACTORS, true, Act> : slope<A, STATISTICS, FACTORS, false, Act>;
  });
  return found;
}

}  // namespace

template <class A>
Slope<A> slope_of(Activation activation, Along along, bool product) {
  if (along.statistics)
    return along.factors ? slope_along<A, true, true>(activation, product)
                         : slope_along<A, true, false>(activation, product);
  return along.factors ? slope_along<A, false, true>(activation, product)
                       : slope_along<A, false, false>(activation, product);
}

template Slope<float> slope_of<float>(Activation, Along, bool);
template Slope<double> slope_of<double>(Activation, Along, bool);

}  // namespace film::FILM_ISA
