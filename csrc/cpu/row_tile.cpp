// The register tiles of row_tile.h, in every size: compiled once, since that takes long.
#include "strip_tile.h"

namespace film::FILM_ISA {

template <class A>
MultiplyRows<A> rows_multiplier(int64_t channels, int64_t rows) {
  return choose_tile<RowTile<Floats<A>>, A>(channels, rows);
}

template MultiplyRows<float> rows_multiplier<float>(int64_t, int64_t);
template MultiplyRows<double> rows_multiplier<double>(int64_t, int64_t);

}  // namespace film::FILM_ISA
