// The register tiles of row_tile.h, in every size: compiled once, since that takes long.
#include "row_tile.h"

#include "tile_choice.h"

namespace film::FILM_ISA {
namespace {

template <class A>
struct RowTile {
  using Function = MultiplyRows<A>;
  static constexpr int kRows = kTileRows;

  template <int V, int H, int M>
  static void multiply(const Stretch* stretch, const Stretch* end, const A* base, int64_t pitch,
                       const A* __restrict weights, A* __restrict out) {
    using Bytes = const char*;
    const auto value = [](Bytes p) {
      A x;
      std::memcpy(&x, p, sizeof x);
      return x;
    };
    int64_t one = pitch * sizeof(A), three = 3 * one, five = 5 * one;
    asm("" : "+r"(one), "+r"(three), "+r"(five));
    for (bool first = true; stretch < end; first = false) {
      TileSums<A, M, V, H> sums;
      sums.clear();
      for (bool more = true; more; ++stretch) {
        more = !stretch->last;
        Bytes low = reinterpret_cast<Bytes>(base + stretch->offset), high = low + 7 * one;
        for (int64_t r = stretch->count; r > 0; --r, weights += sums.kRow) {
          // The compiler is kept from making a pointer of each row, for which there are not enough registers.
          asm("" : "+r"(low), "+r"(high));
          const TileLanes<A, V, H> w(weights);
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) {
            Bytes p = m < 7 ? low : high;
            switch (m % 7) {
              case 1:
                p += one;
                break;
              case 2:
                p += 2 * one;
                break;
              case 3:
                p += three;
                break;
              case 4:
                p += 4 * one;
                break;
              case 5:
                p += five;
                break;
              case 6:
                p += 2 * three;
                break;
            }
            sums.add(m, value(p), w);
          }
          low += sizeof(A), high += sizeof(A);
        }
      }
      sums.put(out, first);
    }
  }
};

}  // namespace

template <class A>
MultiplyRows<A> rows_multiplier(int64_t channels, int64_t rows) {
  return choose_tile<RowTile<A>, A>(channels, rows);
}

template MultiplyRows<float> rows_multiplier<float>(int64_t, int64_t);
template MultiplyRows<double> rows_multiplier<double>(int64_t, int64_t);

}  // namespace film::FILM_ISA
