// The loops of the register tile of row_tile.h, for floats and for pairs.
#pragma once

#include "row_tile.h"
#include "tile_choice.h"

namespace film::FILM_ISA {

template <class Engine>
struct RowTile {
  using E = typename Engine::Element;
  using Function = MultiplyRows<E>;
  static constexpr int kRows = kTileRows;

  template <int V, int H, int M>
  static void multiply(const Stretch* stretch, const Stretch* end, const E* base, int64_t pitch,
                       const E* __restrict weights, SumOf<E>* __restrict out) {
    using Bytes = const char*;
    const auto value = [](Bytes p) {
      E x;
      std::memcpy(&x, p, sizeof x);
      return x;
    };
    int64_t one = pitch * sizeof(E), three = 3 * one, five = 5 * one;
    asm("" : "+r"(one), "+r"(three), "+r"(five));
    for (bool first = true; stretch < end; first = false) {
      TileSums<SumOf<E>, M, V, H> sums;
      sums.clear();
      for (bool more = true; more; ++stretch) {
        more = !stretch->last;
        Bytes low = reinterpret_cast<Bytes>(base + stretch->offset), high = low + 7 * one;
        for (int64_t r = stretch->count; r > 0; --r, weights += sums.kRow) {
          // The compiler is kept from making a pointer of each row, for which there are not enough registers.
          asm("" : "+r"(low), "+r"(high));
          const TileLanes<E, V, H> w(weights);
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
            sums.template add<Engine>(m, value(p), w);
          }
          low += sizeof(E), high += sizeof(E);
        }
      }
      sums.put(out, first);
    }
  }
};

}  // namespace film::FILM_ISA
