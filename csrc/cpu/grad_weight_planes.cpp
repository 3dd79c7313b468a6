// grad_weight.cpp's sums with columns in the lanes (planes.h): U[k][r] is a vector of sums over every L-th column,
// whose lanes are added at the end of a unit, which is some rows of one sample.
#include <numeric>

#include "centre.h"
#include "planes.h"
#include "unit_sums.h"

namespace film::FILM_ISA {
namespace {

// Channels x products of a register tile; one channel with more products for groups that have no more.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSumChannels = 5, kSumProducts = 5;
#else
constexpr int kSumChannels = 5, kSumProducts = 2;
#endif
constexpr int kSumProductsAlone = 8;
constexpr int64_t kChain = 64;  // vectors that are added in one chain, where rows are not longer
constexpr int64_t kSplits = 32;

// The sum of each vector's lanes; L vectors at a time, which shrink to one as they are added in pairs.
template <class A, int COUNT>
inline void add_lanes(const Vector<A>* vectors, A* out) {
  constexpr int L = kLanes<A>;
  for (int first = 0; first < COUNT; first += L) {
    Vector<A> block[L] = {};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (first + i < COUNT) block[i] = vectors[first + i];
    add_pairs<A>(block);
    store_part(out + first, block[0], std::min(L, COUNT - first));
  }
}

// out[K][R] = sum over rows and columns of u[k] * x[r]. u is 0 past the last column, and x is not looked at there.
template <class A, int K, int R>
void sum_products(const A* const* u, const A* const* x, int64_t rows, int64_t u_row, int64_t x_row, int64_t columns,
                  A* out) {
  constexpr int L = kLanes<A>;
  Vector<A> sum[K][R] = {};
  const Mask<A> inside = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(columns % L);
  const auto add = [&](int64_t at_u, int64_t at_x, auto last) {
    Vector<A> value[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      value[r] = load(x[r] + at_x);
      if (decltype(last)::value) value[r] = inside ? value[r] : Vector<A>{};
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const Vector<A> factor = load(u[k] + at_u);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[k][r] += factor * value[r];
    }
  };
  for (int64_t h = 0; h < rows; ++h) {
    int64_t w = 0;
    for (; w + L <= columns; w += L) add(h * u_row + w, h * x_row + w, std::false_type{});
    if (w < columns) add(h * u_row + w, h * x_row + w, std::true_type{});
  }
  add_lanes<A, K * R>(&sum[0][0], out);
}

// u = g * s in place of g, of one channel of a row, in whole vectors: 0 past the last column. s is read off the
// channel's bit in `words`. Adds g and u to the channel's sums, a lane to each of `sum_g` and `sum_u`.
template <class A>
void slope_row(A* row, int64_t columns, const int32_t* words, int32_t bit, A lower_slope, double* sum_g,
               double* sum_u) {
  constexpr int64_t L = kLanes<A>;
  const Vector<A> zero{}, slope = splat<A>(lower_slope);
  const auto add_to = [](double* sum, Vector<A> v) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) sum[i] += v[i];
  };
  for (int64_t begin = 0; begin < columns; begin += kChain * L) {
    Vector<A> g{}, u{};
    for (int64_t w = begin; w < std::min(begin + kChain * L, columns); w += L) {
      Vector<A> v = load(row + w);
      if (columns - w < L) v = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(columns - w) ? v : zero;
      g += v;
      const Mask<A> upper = (words_as_lanes<A>(words + w) & bit) != 0;
      v = upper ? v : (lower_slope == 0 ? zero : v * slope);
      store(row + w, v);
      u += v;
    }
    add_to(sum_g, g);
    add_to(sum_u, u);
  }
}

template <class A>
class GradWeightPlanes {
 public:
  GradWeightPlanes(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        h_(forward_taps(p.h)),
        w_(forward_taps(p.w)),
        products_(p.group_in() * p.h.kernel * p.w.kernel),
        u_row_(round_up(p.w.out, kLanes<A>)),
        rows_(unit_rows()),
        per_sample_((p.h.out + rows_ - 1) / rows_),
        units_(p.batch * per_sample_),
        splits_(std::min(kSplits, units_)),
        shape_(plane_shape<A>(h_, w_, rows_, 1)),
        offsets_(plane_offsets(h_, w_, p.group_in(), shape_)),
        gamma_(p, args.gamma, p.group_out(), static_cast<A>(p.gamma_offset), A(1)),
        weight_(p.out_channels * products_),
        tap_sums_(p.out_channels, p.group_in()),
        partial_(args.grad_weight.data != nullptr ? splits_ * p.out_channels * products_ : 0),
        sums_(p, per_sample_, p.group_out()) {}

  void operator()() {
    if (args_.products_wanted()) with_storage<A>(p_.dtype, [&](auto element) { load_weight<decltype(element)>(); });
    parallel(splits_, [&](int64_t begin, int64_t end) {
      const int64_t columns = w_.extent(w_.count);
      Scratch<A> planes(p_.in_channels * shape_.plane()), line(p_.in_channels * columns);
      Scratch<A> u(p_.out_channels * rows_ * u_row_), mean(p_.in_channels);
      Scratch<double> lanes(2 * p_.out_channels * kLanes<A>);
      Scratch<int32_t> words(u_row_);
      for (int64_t split = begin; split < end; ++split) {
        A* grad_weight = nullptr;
        if (args_.grad_weight.data != nullptr) {
          grad_weight = partial_ + split * p_.out_channels * products_;
          std::memset(grad_weight, 0, p_.out_channels * products_ * sizeof(A));
        }
        for (int64_t unit = units_ * split / splits_; unit < units_ * (split + 1) / splits_; ++unit) {
          const int64_t n = unit / per_sample_, h0 = unit % per_sample_ * rows_;
          const int64_t rows = std::min(rows_, p_.h.out - h0);
          load_u(u, lanes, words, unit, n, h0, rows);
          if (!args_.products_wanted()) continue;
          PlainPlanes<A> source{args_.input, plane_loader<A>(p_.dtype), p_.in_channels};
          fill_planes<A>(planes, line, shape_, h_.extent(rows), h_, w_, p_.in_channels, n, h0, source);
          const bool centred =
              args_.grad_gamma != nullptr && centre_planes<A>(planes, mean, shape_, rows, h_, w_, p_.in_channels, h0);
          if (centred) shift_sums(mean, unit);
          add_products(planes, u, centred ? static_cast<const A*>(mean) : nullptr, unit, n, rows, grad_weight);
        }
      }
    });
    if (args_.grad_weight.data != nullptr) finish_weight();
    sums_.finish(p_, args_, gamma_);
  }

 private:
  // As many as a chain has, or fewer so that several threads have units, but not very few: each unit's lanes are added.
  int64_t unit_rows() const {
    constexpr int64_t kUnits = 4, kLeast = 16;  // vectors
    const int64_t most = kChain * kLanes<A> / u_row_, least = (kLeast * kLanes<A> + u_row_ - 1) / u_row_;
    return std::clamp<int64_t>(std::min(most, std::max(p_.h.out * p_.batch / kUnits, least)), 1, p_.h.out);
  }

  template <class T>
  void load_weight() {  // [channel][source channel][kernel row][kernel column]
    const View& w = args_.weight;
    A* dst = weight_;
    for (int64_t k = 0; k < p_.out_channels; ++k)
      for (int64_t c = 0; c < p_.group_in(); ++c)
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
          for (int64_t kw = 0; kw < p_.w.kernel; ++kw)
            *dst++ = widen<A>(static_cast<const T*>(w.data)[k * w.n + c * w.c + kh * w.h + kw * w.w]);
    const int64_t taps = p_.h.kernel * p_.w.kernel;
    for (int64_t k = 0; k < p_.out_channels; ++k) tap_sums_.set(k, weight_ + k * products_, taps, 1, taps);
  }

  void shift_sums(const A* mean, int64_t unit) {
    for (int64_t g = 0; g < p_.groups; ++g) {
      const int64_t first = g * p_.group_out();
      tap_sums_.dot(mean + g * p_.group_in(), first, first + p_.group_out(), sums_.shift(0, unit, 0) + first);
    }
  }

  // u of a unit as [channel][row][column], and the sums of u and g; `lanes` is room for kLanes sums of both.
  void load_u(A* u, double* lanes, int32_t* words, int64_t unit, int64_t n, int64_t h0, int64_t rows) {
    constexpr int64_t L = kLanes<A>;
    const LoadRow<A> load = plane_loader<A>(p_.dtype);
    const int64_t plane = rows_ * u_row_, channels = p_.out_channels;
    double *sum_g = lanes, *sum_u = lanes + channels * L;
    std::fill(lanes, lanes + 2 * channels * L, 0.0);
    std::fill(words, words + u_row_, -1);
    for (int64_t h = h0; h < h0 + rows; ++h, u += u_row_) {
      load(u, plane, args_.grad, n, h, 0, p_.w.out, 0, channels);
      for (int64_t k = 0; k < channels; ++k) {
        if (k % 32 == 0 && p_.activation != Activation::none)
          load_words(words, args_.bits + (n * p_.h.out + h) * p_.w.out * p_.bit_row(), p_.bit_row(), k / 8, p_.w.out);
        slope_row(u + k * plane, p_.w.out, words, int32_t(uint32_t(1) << k % 32), static_cast<A>(p_.lower_slope),
                  sum_g + k * L, sum_u + k * L);
      }
    }
    for (int64_t k = 0; k < channels; ++k) {
      sums_.at(UnitSums::g, unit, 0)[k] = std::accumulate(sum_g + k * L, sum_g + (k + 1) * L, 0.0);
      sums_.at(UnitSums::u, unit, 0)[k] = std::accumulate(sum_u + k * L, sum_u + (k + 1) * L, 0.0);
    }
  }

  // `mean` is what was taken out of the planes, or null.
  void add_products(const A* planes, const A* u, const A* mean, int64_t unit, int64_t n, int64_t rows, A* grad_weight) {
    double* product = sums_.product(0, unit, 0);
    std::fill(product, product + p_.out_channels, 0.0);
    const bool alone = p_.group_out() < 3;
    for (int64_t g = 0; g < p_.groups; ++g) {
      const A* source = planes + g * p_.group_in() * shape_.plane();
      const int64_t first = g * p_.group_out(), last = first + p_.group_out();
      if (alone)
        tiles<1, kSumProductsAlone>(source, u, first, last, n, rows, product, grad_weight);
      else
        tiles<kSumChannels, kSumProducts>(source, u, first, last, n, rows, product, grad_weight);
      if (mean != nullptr && grad_weight != nullptr)
        add_mean(mean + g * p_.group_in(), unit, first, last, n, grad_weight);
    }
  }

  // dW += gamma * m * sum_p u, at every tap.
  void add_mean(const A* mean, int64_t unit, int64_t first, int64_t last, int64_t n, A* grad_weight) {
    const int64_t taps = p_.h.kernel * p_.w.kernel;
    for (int64_t k = first; k < last; ++k) {
      const A factor = gamma_.at(n, 0)[k] * static_cast<A>(sums_.at(UnitSums::u, unit, 0)[k]);
      for (int64_t r = 0; r < products_; ++r) grad_weight[k * products_ + r] += factor * mean[r / taps];
    }
  }

  // The tiles of one group, and both uses of their U. Places past the last channel or product repeat it.
  template <int K, int R>
  void tiles(const A* source, const A* u, int64_t first, int64_t last, int64_t n, int64_t rows, double* product,
             A* grad_weight) {
    const int64_t plane = rows_ * u_row_;
    for (int64_t r0 = 0; r0 < products_; r0 += R) {
      const A* x[R];
      for (int r = 0; r < R; ++r) x[r] = source + offsets_[std::min(r0 + r, products_ - 1)];
      for (int64_t k0 = first; k0 < last; k0 += K) {
        const A* rows_of_u[K];
        A U[K * R];
        for (int k = 0; k < K; ++k) rows_of_u[k] = u + std::min(k0 + k, last - 1) * plane;
        add_columns<K, R>(rows_of_u, x, rows, U);
        for (int64_t k = k0; k < std::min(k0 + K, last); ++k) {
          const A scale = gamma_.at(n, 0)[k];
          for (int64_t r = r0; r < std::min(r0 + R, products_); ++r) {
            const A value = U[(k - k0) * R + r - r0];
            product[k] += static_cast<double>(weight_[k * products_ + r]) * value;
            if (grad_weight != nullptr) grad_weight[k * products_ + r] += scale * value;
          }
        }
      }
    }
  }

  // U over all columns, in chains of kChain vectors where one row has more.
  template <int K, int R>
  void add_columns(const A** u, const A** x, int64_t rows, A* U) {
    constexpr int64_t kColumns = kChain * kLanes<A>;
    const A* sources[R];
    std::copy(x, x + R, sources);
    for (int64_t w = 0; w < p_.w.out; w += kColumns) {
      A part[K * R];
      const int64_t columns = std::min(kColumns, p_.w.out - w);
      sum_products<A, K, R>(u, sources, rows, u_row_, h_.step * shape_.row(), columns, part);
      for (int i = 0; i < K * R; ++i) U[i] = w == 0 ? part[i] : U[i] + part[i];
      for (int k = 0; k < K; ++k) u[k] += kColumns;
      for (int r = 0; r < R; ++r) sources[r] += kColumns;
    }
  }

  // dW = the sum of the splits, in their order.
  void finish_weight() {
    const int64_t size = p_.out_channels * products_;
    for (int64_t split = 1; split < splits_; ++split)
      for (int64_t i = 0; i < size; ++i) partial_[i] += partial_[split * size + i];
    with_storage<A>(p_.dtype, [&](auto element) { store_weight<decltype(element)>(); });
  }

  template <class T>
  void store_weight() {
    const View& out = args_.grad_weight;
    const A* src = partial_;
    for (int64_t k = 0; k < p_.out_channels; ++k)
      for (int64_t c = 0; c < p_.group_in(); ++c)
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
          for (int64_t kw = 0; kw < p_.w.kernel; ++kw)
            static_cast<T*>(out.data)[k * out.n + c * out.c + kh * out.h + kw * out.w] = narrow<T>(*src++);
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const Taps h_, w_;
  const int64_t products_, u_row_, rows_, per_sample_, units_, splits_;
  const PlaneShape shape_;
  const std::vector<int64_t> offsets_;
  const Factors<A> gamma_;
  Scratch<A> weight_;
  TapSums<A> tap_sums_;
  Scratch<A> partial_;
  UnitSums sums_;
};

}  // namespace

void run_grad_weight_in_planes(const Problem& p, const GradWeightArgs& args) {
  p.dtype == DType::f64 ? GradWeightPlanes<double>(p, args)() : GradWeightPlanes<float>(p, args)();
}

}  // namespace film::FILM_ISA
