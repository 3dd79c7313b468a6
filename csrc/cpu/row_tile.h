// The register tile of the convolution where it reads the strip itself: no patch is gathered.
#pragma once

#include <cstring>
#include <vector>

#include "taps.h"
#include "tile.h"

namespace film::FILM_ISA {

// A piece of a chain of products: `count` of them side by side, `offset` from a position's first one.
struct Piece {
  int64_t offset, count;
  bool last;  // of its chain
};

// As multiply_tile, of positions whose products lie in memory as `pieces` say, `pitch` from one position to the next.
template <class A, int V, int M>
void multiply_rows(const Piece* piece, const Piece* end, const A* base, int64_t pitch, const A* __restrict weights,
                   A* __restrict out) {
  constexpr int L = kLanes<A>;
  using Bytes = const char*;
  const auto value = [](Bytes p) {
    A x;
    std::memcpy(&x, p, sizeof x);
    return x;
  };
  int64_t one = pitch * sizeof(A), three = 3 * one, five = 5 * one;
  asm("" : "+r"(one), "+r"(three), "+r"(five));
  for (bool first = true; piece < end; first = false) {
    Vector<A> sum[M][V] = {};
    for (bool more = true; more; ++piece) {
      more = !piece->last;
      Bytes low = reinterpret_cast<Bytes>(base + piece->offset), high = low + 7 * one;
      for (int64_t r = piece->count; r > 0; --r, weights += V * L) {
        // The compiler is kept from making a pointer of each row, for which there are not enough registers.
        asm("" : "+r"(low), "+r"(high));
        Vector<A> w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) w[v] = load(weights + v * L);
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
          const A x = value(p);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[m][v] += x * w[v];
        }
        low += sizeof(A), high += sizeof(A);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        A* at = out + (m * V + v) * L;
        store(at, first ? sum[m][v] : load(at) + sum[m][v]);
      }
  }
}

template <class A>
using MultiplyRows = void (*)(const Piece*, const Piece*, const A*, int64_t, const A*, A*);

template <class A, int V, int... M>
MultiplyRows<A> rows_multiplier(int64_t rows, std::integer_sequence<int, M...>) {
  static constexpr MultiplyRows<A> all[] = {multiply_rows<A, V, M + 1>...};
  return all[rows - 1];
}

// The tile of so many vectors (at most kTileVectors) and rows (at most kTileRows).
template <class A, int V = 1>
MultiplyRows<A> rows_multiplier(int vectors, int64_t rows) {
  if constexpr (V < kTileVectors)
    if (vectors != V) return rows_multiplier<A, V + 1>(vectors, rows);
  return rows_multiplier<A, V>(rows, std::make_integer_sequence<int, kTileRows>());
}

// Whether tiles read the strip: where a tile's positions are neighbours in one row of at least half a tile, and
// channels are too few to make up for packing patches.
template <class A>
bool reads_strip(const Pass<A>& pass, const Panels<A>& panels, int64_t columns, int64_t source_channels) {
  constexpr int64_t kPanels = 2, kPitchBytes = 2048;
  return pass.products > 0 && panels.count() <= kPanels && 2 * share_evenly(columns, kTileRows) >= kTileRows &&
         source_channels * pass.w.step * static_cast<int64_t>(sizeof(A)) <= kPitchBytes;
}

// The products of a position, in chains of kChunk, in a strip whose rows are `line` elements.
template <class A>
std::vector<Piece> pieces_of(const Pass<A>& pass, int64_t line, int64_t source_channels) {
  std::vector<Piece> pieces;
  const bool run = pass.w.consecutive();
  const int64_t runs = run ? 1 : pass.w.offset.size();
  const int64_t length = run ? static_cast<int64_t>(pass.w.offset.size()) * source_channels : source_channels;
  int64_t left = kChunk;
  for (int64_t offset_h : pass.h.offset)
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t offset = (offset_h - pass.h.low()) * line + (pass.w.offset[i] - pass.w.low()) * source_channels;
      for (int64_t at = 0; at < length;) {
        const int64_t count = std::min(left, length - at);
        left -= count;
        pieces.push_back({offset + at, count, left == 0});
        at += count;
        if (left == 0) left = kChunk;
      }
    }
  pieces.back().last = true;
  return pieces;
}

}  // namespace film::FILM_ISA
