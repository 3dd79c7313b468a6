// Forward over rows: normalised, modulated and activated in one go.
#include "norm_rows.h"

namespace film::FILM_ISA {
namespace {

template <class A, bool STATISTICS, bool FACTORS, bool POST, class Act>
void modulate(const RowPass<A>& pass, double lower_slope, Rows<A> y, const Soon& soon) {
  const Act act(lower_slope);
  for (int64_t r = 0; r < pass.rows; ++r) {
    const Normalised<A, STATISTICS, FACTORS> xhat(pass, r);
    const Factor<A, FACTORS> scale(pass.by.scale, r), shift(pass.by.shift, r);
    const Factor<A, FACTORS> after(POST ? pass.by.after : pass.by.scale, r),
        plus(POST ? pass.by.plus : pass.by.shift, r);
    A* out = y.row(r);
    for_vectors<A>(pass.columns, [&](int64_t c, const auto& memory) {
      const Vector<A> v = scale.get(c, memory) * xhat.get(c, memory) + shift.get(c, memory);
      soon.fetch(r, c);
      Vector<A> value = act.template value<A>(v);
      if constexpr (POST) value = after.get(c, memory) * value + plus.get(c, memory);
      memory.store(out + c, value);
    });
  }
}

template <class A, bool STATISTICS, bool FACTORS>
Modulate<A> modulate_along(Activation activation, Position position) {
  Modulate<A> found = nullptr;
  with_activation(activation, 0, [&](auto act) {
    using Act = decltype(act);
    found = position == Position::post ? modulate<A, STATISTICS, FACTORS, true, Act>
                                       : modulate<A, STATISTICS, FACTORS, false, Act>;
  });
  return found;
}

}  // namespace

template <class A>
Modulate<A> modulate_of(Activation activation, Along along, Position position) {
  if (along.statistics)
    return along.factors ? modulate_along<A, true, true>(activation, position)
                         : modulate_along<A, true, false>(activation, position);
  return along.factors ? modulate_along<A, false, true>(activation, position)
                       : modulate_along<A, false, false>(activation, position);
}

template Modulate<float> modulate_of<float>(Activation, Along, Position);
template Modulate<double> modulate_of<double>(Activation, Along, Position);

}  // namespace film::FILM_ISA
