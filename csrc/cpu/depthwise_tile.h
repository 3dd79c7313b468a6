// The register tile of a depthwise convolution: sums of some neighbouring columns x one vector of channels. A row of
// the kernel is loaded once for all of these columns, and a column of the source once for all taps that meet it.
#pragma once

#include "depthwise.h"
#include "tile.h"

namespace film::FILM_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kDepthwiseColumns = 8;  // 8 sums, 7 weights and an element: half of 32 registers, for an epilogue's use
#else
constexpr int kDepthwiseColumns = 4;
#endif

// A row of the destination, or some of its columns, and what it reads. Its columns are those of a pass, from 0 on.
template <class A>
struct DepthwiseRow {
  const A* const* x;     // for each row of the kernel, column 0 of the source row that it meets, or null in the padding
  int64_t kernel_rows;   // how many these are
  int64_t pitch;         // elements from one column of the source to the next
  int64_t columns, low;  // of the source, and which of them the first tap of destination column 0 meets
  const A* filters;      // [tap][channel]
  int64_t channels;      // of all groups
  int64_t first, count;  // destination columns
};

// Adds a run of columns from source column `begin` on. Products with padding are left out: those with the source
// columns before `first` and from `last` on, counted from `begin`.
template <class A, int TAPS, int STEP, bool EDGE>
inline void add_kernel_rows(Vector<A> (&sum)[kDepthwiseColumns], const DepthwiseRow<A>& row, int64_t begin, int64_t c,
                            int64_t first, int64_t last) {
  constexpr int J = kDepthwiseColumns, kExtent = (J - 1) * STEP + TAPS;
  const A* filter = row.filters + c;
  for (int64_t kh = 0; kh < row.kernel_rows; ++kh, filter += TAPS * row.channels) {
    if (row.x[kh] == nullptr) continue;
    const A* x = row.x[kh] + begin * row.pitch + c;
    Vector<A> weight[TAPS];
#pragma GCC unroll 8
    for (int t = 0; t < TAPS; ++t) weight[t] = load(filter + t * row.channels);
#pragma GCC unroll 32
    for (int i = 0; i < kExtent; ++i) {
      if (EDGE && (i < first || i >= last)) continue;
      const Vector<A> v = load(x + i * row.pitch);
#pragma GCC unroll 8
      for (int t = 0; t < TAPS; ++t)
        if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < J) sum[(i - t) / STEP] += v * weight[t];
    }
  }
}

// Calls epilogue(sums, first column, how many, first channel) for the tiles of a row. Where columns or channels do not
// fill the last tile it begins further back, and some of its sums are there twice, the same both times.
template <class A, int TAPS, int STEP, class Epilogue>
void sum_depthwise_row(const DepthwiseRow<A>& row, const Epilogue& epilogue) {
  constexpr int64_t J = kDepthwiseColumns, L = kLanes<A>, kExtent = (J - 1) * STEP + TAPS;
  constexpr int64_t kFilterBytes = 16 << 10;  // of channels that are worked on together: they stay in L1
  const int64_t bytes_of_vector = std::max<int64_t>(row.kernel_rows * TAPS, 1) * kVectorBytes;
  const int64_t block = round_up(std::max<int64_t>(kFilterBytes / bytes_of_vector, 1) * L, 16);  // whole bytes of bits
  for (int64_t c0 = 0; c0 < row.channels; c0 += block)
    for (int64_t w0 = 0; w0 < row.count; w0 += J) {
      const int64_t some = std::max<int64_t>(std::min(w0, row.count - J), 0), count = std::min(J, row.count - some);
      const int64_t w = row.first + some, begin = w * STEP + row.low;
      const int64_t first = -begin, last = std::min(row.columns - begin, (count - 1) * STEP + TAPS);
      const bool edge = first > 0 || last < kExtent;
      for (int64_t at = c0; at < std::min(c0 + block, row.channels); at += L) {
        const int64_t c = std::max<int64_t>(std::min(at, row.channels - L), 0);
        Vector<A> sum[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) sum[j] = Vector<A>{};
        if (edge)
          add_kernel_rows<A, TAPS, STEP, true>(sum, row, begin, c, first, last);
        else
          add_kernel_rows<A, TAPS, STEP, false>(sum, row, begin, c, first, last);
        epilogue(sum, w, count, c);
      }
    }
}

// Of as many taps along a row as there are, which the compiler then knows.
template <class A, class Epilogue>
void sum_depthwise_row(int64_t taps, int64_t step, const DepthwiseRow<A>& row, const Epilogue& epilogue) {
  with_constant<kMostDepthwiseTaps>(taps, [&](auto number) {
    constexpr int TAPS = decltype(number)::value;
    if (step == 1)
      sum_depthwise_row<A, TAPS, 1>(row, epilogue);
    else
      sum_depthwise_row<A, TAPS, 2>(row, epilogue);
  });
}

}  // namespace film::FILM_ISA
