// Passes over rows that have nothing to do with the activation: sums, those of backward, and dx.
#pragma once

#include <array>

#include "norm_rows.h"

namespace film::FILM_ISA {

// Adds the sums of vectors' lanes to doubles: as many vectors as there are lanes at a time, which shrink to one as they
// are added in pairs.
template <class A>
class LaneSums {
 public:
  ~LaneSums() { finish(); }
  void add(Vector<A> v, double* to) {
    held_[count_] = v, to_[count_] = to;
    if (++count_ == kLanes<A>) finish();
  }

 private:
  void finish() {
    for (int i = count_; i < kLanes<A>; ++i) held_[i] = Vector<A>{};
    add_pairs<A>(held_);
    for (int i = 0; i < count_; ++i) *to_[i] += held_[0][i];
    count_ = 0;
  }

  Vector<A> held_[kLanes<A>];
  double* to_[kLanes<A>];
  int count_ = 0;
};

// Calls body(column, how to load there, sums) for each vector of a row, which adds to KINDS sums, and adds these to
// doubles. There are CHAINS of each side by side.
template <class A, int KINDS, int CHAINS, class Body>
inline void sum_chains(LaneSums<A>& lanes, int64_t columns, const std::array<double*, KINDS>& to, const Body& body) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t first = 0; first < columns; first += CHAINS * kChain * L) {
    const int64_t end = std::min(columns, first + CHAINS * kChain * L);
    Vector<A> sums[CHAINS][KINDS] = {};
    int64_t c = first;
    for (; c + CHAINS * L <= end; c += CHAINS * L)
      for (int i = 0; i < CHAINS; ++i) body(c + i * L, WholeVector<A>{}, sums[i]);
    for (; c + L <= end; c += L) body(c, WholeVector<A>{}, sums[0]);
    if (c < end) body(c, PartOfVector<A>{end - c}, sums[CHAINS - 1]);
    for (int k = 0; k < KINDS; ++k) {
      Vector<A> all = sums[0][k];
      for (int i = 1; i < CHAINS; ++i) all += sums[i][k];
      lanes.add(all, to[k]);
    }
  }
}

// A row that is longer than one chain has several, for in one alone each addition waits for the last.
template <class A, int KINDS, class Body>
inline void sum_row(LaneSums<A>& lanes, int64_t columns, const std::array<double*, KINDS>& to, const Body& body) {
  columns > kChain* kLanes<A> ? sum_chains<A, KINDS, 4>(lanes, columns, to, body)
                              : sum_chains<A, KINDS, 1>(lanes, columns, to, body);
}

// Adds the sum of each row to `sums`.
template <class A>
void add_rows(int64_t rows, int64_t columns, Rows<const A> x, double* sums) {
  LaneSums<A> lanes;
  for (int64_t r = 0; r < rows; ++r)
    sum_row<A, 1>(lanes, columns, {sums + r},
                  [&](int64_t c, const auto& memory, Vector<A>* all) { all[0] += memory.load(x.row(r) + c); });
}

// Adds each row, or with SQUARES the squares of its numbers, to `sums`, four rows at a time.
template <class A, bool SQUARES>
void add_columns(int64_t rows, int64_t columns, Rows<const A> x, A* sums) {
  const auto number = [](Vector<A> v) { return SQUARES ? v * v : v; };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const A *a = x.row(r), *b = x.row(r + 1), *c = x.row(r + 2), *d = x.row(r + 3);
    for_vectors<A>(columns, [&](int64_t i, const auto& memory) {
      const Vector<A> two = number(memory.load(a + i)) + number(memory.load(b + i));
      const Vector<A> others = number(memory.load(c + i)) + number(memory.load(d + i));
      memory.store(sums + i, memory.load(sums + i) + (two + others));
    });
  }
  for (; r < rows; ++r)
    for_vectors<A>(columns, [&](int64_t i, const auto& memory) {
      memory.store(sums + i, memory.load(sums + i) + number(memory.load(x.row(r) + i)));
    });
}

// Adds numbers to others that have more digits, and sets them to 0.
template <class A>
void move_sums(int64_t count, A* from, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i], from[i] = 0;
}

// Adds `count` rows of numbers, `pitch` apart, into the first of them: by halves, so that in float64 too the error of a
// sum hardly grows with the size of a map.
inline void add_by_halves(double* rows, int64_t count, int64_t pitch, int64_t columns) {
  for (int64_t span = 1; span < count; span *= 2)
    for (int64_t r = 0; r + span < count; r += 2 * span)
      for (int64_t c = 0; c < columns; ++c) rows[r * pitch + c] += rows[(r + span) * pitch + c];
}

// What backward sums of d and xhat: of each channel, and, where statistics vary the other way, weighted by the
// channel's factor, of each group. Sums along a row are added to doubles, and sums over rows to as many numbers as
// there are columns, which are to be moved into doubles before the chain grows long.
template <class A, bool ALONG_ROW>
using Sum = std::conditional_t<ALONG_ROW, double, A>;

template <class A, bool STATISTICS, bool FACTORS>
struct BackwardSums {
  Sum<A, !FACTORS>*d, *along, *of_z = nullptr;                    // sum d, sum d * xhat, sum d * z where it is wanted
  const A* weight = nullptr;                                      // of a channel
  Sum<A, !STATISTICS>*group_d = nullptr, *group_along = nullptr;  // sum weight * d, sum weight * d * xhat
};

template <class A, bool STATISTICS, bool FACTORS, bool OF_Z>
void sum_backward(const RowPass<A>& pass, Rows<const A> d, const MakesZ<A>& z,
                  const BackwardSums<A, STATISTICS, FACTORS>& sums) {
  constexpr bool kGroups = STATISTICS != FACTORS;
  constexpr int kOfRow = (FACTORS ? 0 : 2 + OF_Z) + (kGroups && !STATISTICS ? 2 : 0);
  const auto add = [](A* to, int64_t c, const auto& memory, Vector<A> v) {
    memory.store(to + c, memory.load(to + c) + v);
  };
  LaneSums<A> lanes;
  for (int64_t r = 0; r < pass.rows; ++r) {
    const Normalised<A, STATISTICS, FACTORS> xhat(pass, r);
    const Factor<A, FACTORS> weight(kGroups ? sums.weight : pass.by.scale, r);
    const Factor<A, FACTORS> z_weight(OF_Z ? z.weight : pass.by.scale, r), z_bias(OF_Z ? z.bias : pass.by.scale, r);
    const A* row = d.row(r);
    const auto body = [&](int64_t c, const auto& memory, Vector<A>* of_row) {
      const Vector<A> up = memory.load(row + c), x = xhat.get(c, memory), product = up * x;
      Vector<A> of_z{};
      if constexpr (OF_Z) of_z = up * (z_weight.get(c, memory) * x + z_bias.get(c, memory));
      if constexpr (FACTORS) {
        add(sums.d, c, memory, up), add(sums.along, c, memory, product);
        if constexpr (OF_Z) add(sums.of_z, c, memory, of_z);
      } else {
        of_row[0] += up, of_row[1] += product;
        if constexpr (OF_Z) of_row[2] += of_z;
      }
      if constexpr (kGroups) {
        const Vector<A> factor = weight.get(c, memory);
        if constexpr (STATISTICS)
          add(sums.group_d, c, memory, factor * up), add(sums.group_along, c, memory, factor * product);
        else
          of_row[0] += factor * up, of_row[1] += factor * product;
      }
    };
    if constexpr (kOfRow == 0) {
      for_vectors<A>(pass.columns, [&](int64_t c, const auto& memory) { body(c, memory, nullptr); });
    } else {
      std::array<double*, kOfRow> to;
      if constexpr (FACTORS)
        to = {sums.group_d + r, sums.group_along + r};
      else if constexpr (OF_Z)
        to = {sums.d + r, sums.along + r, sums.of_z + r};
      else
        to = {sums.d + r, sums.along + r};
      sum_row<A, kOfRow>(lanes, pass.columns, to, body);
    }
  }
}

// With the sum of d * z, where there is a place for it.
template <class A, bool STATISTICS, bool FACTORS>
void sum_backward(const RowPass<A>& pass, Rows<const A> d, const MakesZ<A>& z,
                  const BackwardSums<A, STATISTICS, FACTORS>& sums) {
  sums.of_z != nullptr ? sum_backward<A, STATISTICS, FACTORS, true>(pass, d, z, sums)
                       : sum_backward<A, STATISTICS, FACTORS, false>(pass, d, z, sums);
}

// dx = weight * d - constant - xhat * slope, where weight is of channels and the others are of groups; with statistics
// and factors that vary different ways weight is multiplied by rstd.
template <class A>
struct GradInput {
  const A *weight, *constant, *slope;
};

// dx = weight * d, where nothing is normalised: an input that is not finite has no part in it.
template <class A, bool FACTORS>
void scale_rows(int64_t rows, int64_t columns, Rows<const A> d, const A* weight, Rows<A> dx) {
  for (int64_t r = 0; r < rows; ++r) {
    const Factor<A, FACTORS> factor(weight, r);
    for_vectors<A>(columns, [&](int64_t c, const auto& memory) {
      memory.store(dx.row(r) + c, factor.get(c, memory) * memory.load(d.row(r) + c));
    });
  }
}

template <class A, bool STATISTICS, bool FACTORS, class... Fetch>
void grad_input_rows(const RowPass<A>& pass, Rows<const A> d, const GradInput<A>& by, Rows<A> dx,
                     const Fetch&... soon) {
  for (int64_t r = 0; r < pass.rows; ++r) {
    const Normalised<A, STATISTICS, FACTORS> xhat(pass, r);
    const Factor<A, FACTORS> weight(by.weight, r);
    const Factor<A, STATISTICS> constant(by.constant, r), slope(by.slope, r);
    const A* row = d.row(r);
    A* out = dx.row(r);
    for_vectors<A>(pass.columns, [&](int64_t c, const auto& memory) {
      (soon.fetch(r, c), ...);
      Vector<A> factor = weight.get(c, memory);
      if constexpr (STATISTICS != FACTORS) factor *= xhat.rstd.get(c, memory);
      memory.store(out + c, factor * memory.load(row + c) - constant.get(c, memory) -
                                xhat.get(c, memory) * slope.get(c, memory));
    });
  }
}

}  // namespace film::FILM_ISA
