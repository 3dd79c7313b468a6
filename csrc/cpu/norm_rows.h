// Passes over rows of a tensor: to normalise and modulate them, and to differentiate that.
//
// A row is a run of memory: of the positions of one channel, or of the channels of one position. Statistics are of a
// row or of a column, and so are the factors of channels; so there are four kinds of passes, which are told apart by
// where the two vary. Everything here is in the type of sums, A.
#pragma once

#include "activate.h"
#include "transpose.h"

namespace film::FILM_ISA {

// Rows of a matrix in memory.
template <class A>
struct Rows {
  A* at = nullptr;
  int64_t pitch = 0;

  A* row(int64_t r) const { return at + r * pitch; }
};

// What varies from row to row has a number for each row, and what varies along a row one for each column.
struct Along {
  bool statistics, factors;  // whether these vary along a row
};

// xhat = (x - mean) * rstd and v = scale * xhat + shift. Where statistics and factors vary the same way rstd is part of
// scale, and xhat stands for x - mean alone.
// y = act(v), or after * act(v) + plus where FiLM comes after.
template <class A>
struct RowFactors {
  const A *mean, *rstd, *scale, *shift;
  const A *after = nullptr, *plus = nullptr;
};

// z = weight * xhat + bias, of which FiLM is made.
template <class A>
struct MakesZ {
  const A *weight, *bias;
};

// Rows of memory that are read or written soon: while those of now are worked on, a cache can fetch them.
struct Soon {
  const char* at;
  int64_t pitch, size;  // bytes from row to row, and of an element

  void fetch(int64_t row, int64_t column) const { __builtin_prefetch(at + row * pitch + column * size, 0, 2); }
};

// Two of them.
struct BothSoon {
  Soon one, other;

  void fetch(int64_t row, int64_t column) const { one.fetch(row, column), other.fetch(row, column); }
};

template <class A>
struct RowPass {
  int64_t rows, columns;
  Rows<const A> x;
  RowFactors<A> by;
};

// y, from x.
template <class A>
using Modulate = void (*)(const RowPass<A>&, double lower_slope, Rows<A> y, const Soon&);
template <class A>
Modulate<A> modulate_of(Activation, Along, Position);

// d = grad * act'(v), and with `product` grad * act(v) too; what to fetch meanwhile may be null.
template <class A>
using Slope = void (*)(const RowPass<A>&, double lower_slope, Rows<const A> grad, Rows<A> d, Rows<A> product,
                       const BothSoon*);
template <class A>
Slope<A> slope_of(Activation, Along, bool product);

// Loads and stores of a vector within a row, and of its last one, which may be a part.
template <class A>
struct WholeVector {
  Vector<A> load(const A* p) const { return FILM_ISA::load(p); }
  void store(A* p, Vector<A> v) const { FILM_ISA::store(p, v); }
};
template <class A>
struct PartOfVector {
  int64_t count;
  Vector<A> load(const A* p) const { return load_part(p, count); }
  void store(A* p, Vector<A> v) const { store_part(p, v, count); }
};

// Calls body(column, how to load and store there) for each vector of a row.
template <class A, class Body>
inline void for_vectors(int64_t columns, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<A> <= columns; c += kLanes<A>) body(c, WholeVector<A>{});
  if (c < columns) body(c, PartOfVector<A>{columns - c});
}

// The number of one row, as a vector, or those of columns.
template <class A, bool ALONG>
struct Factor {
  const A* at;
  Vector<A> number;

  Factor(const A* all, int64_t row) : at(all), number(ALONG ? Vector<A>{} : splat(all[row])) {}
  template <class Memory>
  Vector<A> get(int64_t column, const Memory& memory) const {
    if constexpr (ALONG) return memory.load(at + column);
    return number;
  }
};

// xhat of a row.
template <class A, bool STATISTICS, bool FACTORS>
struct Normalised {
  static constexpr bool kRstd = STATISTICS != FACTORS;
  const A* x;
  Factor<A, STATISTICS> mean, rstd;

  Normalised(const RowPass<A>& pass, int64_t row)
      : x(pass.x.row(row)), mean(pass.by.mean, row), rstd(kRstd ? pass.by.rstd : pass.by.mean, row) {}
  template <class Memory>
  Vector<A> get(int64_t column, const Memory& memory) const {
    const Vector<A> centred = memory.load(x + column) - mean.get(column, memory);
    if constexpr (kRstd) return centred * rstd.get(column, memory);
    return centred;
  }
};

template <int N>
struct Doubles {
  typedef double type __attribute__((vector_size(8 * N)));
};

// The sum of N numbers, each half added to the other.
template <int N>
inline double add_up(typename Doubles<N>::type v) {
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    typename Doubles<N / 2>::type half[2];
    std::memcpy(half, &v, sizeof half);
    return add_up<N / 2>(half[0] + half[1]);
  }
}

// The sum of a vector's lanes: what comes after it is added up without losing digits.
template <class A>
inline double sum_of(Vector<A> v) {
  constexpr int L = kLanes<A>;
  if constexpr (sizeof(A) == 8) {
    return add_up<L>(v);
  } else {
    typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
    using D = typename Doubles<L / 2>::type;
    Half half[2];
    std::memcpy(half, &v, sizeof half);
    return add_up<L / 2>(__builtin_convertvector(half[0], D) + __builtin_convertvector(half[1], D));
  }
}

// Vectors, or rows, that are added one to another before the sum goes into a double.
constexpr int64_t kChain = 16;

}  // namespace film::FILM_ISA
