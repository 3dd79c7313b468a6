// grad_weight.cpp's sums with columns in the lanes (planes.h): U[k][r] is a vector of sums over every L-th column,
// whose lanes are added at the end of a unit, which is some rows of one sample.
#include <numeric>

#include "centre.h"
#include "plane_sums.h"
#include "planes.h"
#include "unit_sums.h"

namespace film::FILM_ISA {
namespace {

// How the positions are cut: rows into units, units into splits, each of which has a dW of its own.
struct UnitPlan {
  int64_t rows;        // of a unit, at most
  int64_t per_sample;  // units
  int64_t units;       // of all samples
  int64_t splits;
};

// Units have as many rows as a chain does, or fewer so that several threads have units, but not very few, since each
// unit's lanes are added. `vectors` are those of a row.
UnitPlan plan_units(const Problem& p, int64_t vectors) {
  constexpr int64_t kSplits = 32;        // so that many cores have work
  constexpr int64_t kUnits = 4;          // at least, where that leaves each of them
  constexpr int64_t kLeastVectors = 16;  // in a channel's rows
  const int64_t most = kChainVectors / vectors, least = (kLeastVectors + vectors - 1) / vectors;
  UnitPlan plan;
  plan.rows = std::clamp<int64_t>(std::min(most, std::max(p.h.out * p.batch / kUnits, least)), 1, p.h.out);
  plan.per_sample = (p.h.out + plan.rows - 1) / plan.rows;
  plan.units = p.batch * plan.per_sample;
  plan.splits = std::min(kSplits, plan.units);
  return plan;
}

template <class A>
class GradWeightPlanes {
 public:
  GradWeightPlanes(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        h_(forward_taps(p.h)),
        w_(forward_taps(p.w)),
        taps_(p.h.kernel * p.w.kernel),
        products_(p.group_in() * taps_),
        u_row_(round_up(p.w.out, kLanes<A>)),
        plan_(plan_units(p, u_row_ / kLanes<A>)),
        shape_(plane_shape<A>(h_, w_, plan_.rows, 1)),
        offsets_(plane_offsets(h_, w_, p.group_in(), shape_)),
        gamma_(p, args.gamma, p.group_out(), static_cast<A>(p.gamma_offset), A(1)),
        weight_(p.out_channels * products_),
        tap_sums_(p.out_channels, p.group_in()),
        grad_weights_(args.grad_weight.data != nullptr ? plan_.splits * p.out_channels * products_ : 0),
        sums_(p, plan_.per_sample, p.group_out()) {}

  void operator()() {
    if (args_.products_wanted()) with_storage<A>(p_.dtype, [&](auto element) { load_weight<decltype(element)>(); });
    parallel(plan_.splits, [&](int64_t begin, int64_t end) {
      Workspace space(*this);
      for (int64_t split = begin; split < end; ++split) run_split(split, space);
    });
    if (args_.grad_weight.data != nullptr) finish_weight();
    sums_.finish(p_, args_, gamma_);
  }

 private:
  struct Unit {
    int64_t number;
    RowRange rows;
  };

  // What a thread has at hand for a unit.
  struct Workspace {
    explicit Workspace(const GradWeightPlanes& of)
        : planes(of.shape_, of.p_.in_channels, of.w_),
          u(of.p_.out_channels * of.plan_.rows * of.u_row_),
          mean(of.p_.in_channels),
          sum_g(of.p_.out_channels * kLanes<A>),
          sum_u(of.p_.out_channels * kLanes<A>),
          words(of.u_row_) {}
    const Planes<A> planes;
    Scratch<A> u;                  // [channel][row][column]
    Scratch<A> mean;               // of each source channel, taken out of the planes
    Scratch<double> sum_g, sum_u;  // [channel][lane]
    Scratch<int32_t> words;        // the bits of 32 channels of a row
    A* grad_weight = nullptr;      // the split's dW, or null where it is not wanted
  };

  template <class T>
  void load_weight() {  // [channel][source channel][kernel row][kernel column]
    const View& w = args_.weight;
    A* dst = weight_;
    for (int64_t k = 0; k < p_.out_channels; ++k)
      for (int64_t c = 0; c < p_.group_in(); ++c)
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
          for (int64_t kw = 0; kw < p_.w.kernel; ++kw)
            *dst++ = widen<A>(static_cast<const T*>(w.data)[k * w.n + c * w.c + kh * w.h + kw * w.w]);
    for (int64_t k = 0; k < p_.out_channels; ++k) tap_sums_.set(k, weight_ + k * products_, taps_, 1, taps_);
  }

  void run_split(int64_t split, Workspace& space) {
    if (args_.grad_weight.data != nullptr) {
      space.grad_weight = grad_weights_ + split * p_.out_channels * products_;
      std::memset(space.grad_weight, 0, p_.out_channels * products_ * sizeof(A));
    }
    const int64_t end = plan_.units * (split + 1) / plan_.splits;
    for (int64_t number = plan_.units * split / plan_.splits; number < end; ++number) {
      const int64_t h0 = number % plan_.per_sample * plan_.rows;
      run_unit({number, {number / plan_.per_sample, h0, std::min(plan_.rows, p_.h.out - h0)}}, space);
    }
  }

  void run_unit(const Unit& unit, const Workspace& space) {
    load_u(unit, space);
    if (!args_.products_wanted()) return;
    PlainPlanes<A> source{args_.input, plane_loader<A>(p_.dtype), p_.in_channels};
    space.planes.fill(unit.rows, h_, w_, source);
    const bool centred = args_.grad_gamma != nullptr && centre_planes<A>(space.planes, space.mean, unit.rows, h_, w_);
    if (centred) shift_sums(unit, space.mean);
    double* products = sums_.product(0, unit.number, 0);
    std::fill(products, products + p_.out_channels, 0.0);
    for (int64_t g = 0; g < p_.groups; ++g) {
      if (p_.group_out() < kFewSumChannels)
        add_products<1, kSumProductsAlone>(g, unit, space);
      else
        add_products<kSumChannels, kSumProducts>(g, unit, space);
      if (centred && space.grad_weight != nullptr) put_mean_back(g, unit, space);
    }
  }

  void shift_sums(const Unit& unit, const A* mean) {
    for (int64_t g = 0; g < p_.groups; ++g) {
      const int64_t first = g * p_.group_out();
      long double* shifts = sums_.shift(0, unit.number, 0) + first;
      tap_sums_.dot(mean + g * p_.group_in(), first, first + p_.group_out(), shifts);
    }
  }

  // u of a unit, and the sums of u and g.
  void load_u(const Unit& unit, const Workspace& space) {
    constexpr int64_t L = kLanes<A>;
    const LoadPlanes<A> load = plane_loader<A>(p_.dtype);
    const int64_t plane = plan_.rows * u_row_, channels = p_.out_channels;
    std::fill(space.sum_g + 0, space.sum_g + channels * L, 0.0);
    std::fill(space.sum_u + 0, space.sum_u + channels * L, 0.0);
    std::fill(space.words + 0, space.words + u_row_, -1);
    for (int64_t row = 0; row < unit.rows.count; ++row) {
      const int64_t n = unit.rows.n, h = unit.rows.first + row;
      A* u = space.u + row * u_row_;
      load(u, plane, args_.grad, {n, h, 0, p_.w.out}, {0, channels});
      for (int64_t k = 0; k < channels; ++k) {
        if (k % 32 == 0 && p_.activation != Activation::none)
          load_words(space.words, args_.bits + (n * p_.h.out + h) * p_.w.out * p_.bit_row(), p_.bit_row(), k / 8,
                     p_.w.out);
        slope_row<A>(u + k * plane, p_.w.out, space.words, int32_t(uint32_t(1) << k % 32),
                     static_cast<A>(p_.lower_slope), {space.sum_g + k * L, space.sum_u + k * L});
      }
    }
    const auto total = [](const double* lanes) { return std::accumulate(lanes, lanes + L, 0.0); };
    for (int64_t k = 0; k < channels; ++k) {
      sums_.at(UnitSums::g, unit.number, 0)[k] = total(space.sum_g + k * L);
      sums_.at(UnitSums::u, unit.number, 0)[k] = total(space.sum_u + k * L);
    }
  }

  // dW += gamma * m * sum_p u, at every tap.
  void put_mean_back(int64_t g, const Unit& unit, const Workspace& space) {
    const A* mean = space.mean + g * p_.group_in();
    for (int64_t k = g * p_.group_out(); k < (g + 1) * p_.group_out(); ++k) {
      const A factor = gamma_.at(unit.rows.n, 0)[k] * static_cast<A>(sums_.at(UnitSums::u, unit.number, 0)[k]);
      for (int64_t r = 0; r < products_; ++r) space.grad_weight[k * products_ + r] += factor * mean[r / taps_];
    }
  }

  // The tiles of one group, and both uses of their U. Places past the last channel or product repeat it.
  template <int K, int R>
  void add_products(int64_t g, const Unit& unit, const Workspace& space) {
    const int64_t first = g * p_.group_out(), last = first + p_.group_out();
    const A *planes = space.planes.of_channel(g * p_.group_in()), *gamma = gamma_.at(unit.rows.n, 0);
    double* products = sums_.product(0, unit.number, 0);
    A* grad_weight = space.grad_weight;
    for (int64_t r0 = 0; r0 < products_; r0 += R) {
      const A* x[R];
      for (int r = 0; r < R; ++r) x[r] = planes + offsets_[std::min(r0 + r, products_ - 1)];
      for (int64_t k0 = first; k0 < last; k0 += K) {
        const A* u[K];
        A U[K * R];
        for (int k = 0; k < K; ++k) u[k] = space.u + std::min(k0 + k, last - 1) * plan_.rows * u_row_;
        add_columns<K, R>(u, x, unit.rows.count, U);
        for (int64_t k = k0; k < std::min(k0 + K, last); ++k)
          for (int64_t r = r0; r < std::min(r0 + R, products_); ++r) {
            const A value = U[(k - k0) * R + r - r0];
            products[k] += static_cast<double>(weight_[k * products_ + r]) * value;
            if (grad_weight != nullptr) grad_weight[k * products_ + r] += gamma[k] * value;
          }
      }
    }
  }

  // U over all columns, in chains of kChainVectors where one row has more.
  template <int K, int R>
  void add_columns(const A** u, const A** x, int64_t rows, A* U) const {
    constexpr int64_t kColumns = kChainVectors * kLanes<A>;
    const A* sources[R];
    std::copy(x, x + R, sources);
    for (int64_t w = 0; w < p_.w.out; w += kColumns) {
      A chain[K * R];
      const RowSteps steps{rows, u_row_, h_.step * shape_.row()};
      sum_products<A, K, R>(u, sources, steps, std::min(kColumns, p_.w.out - w), chain);
      for (int i = 0; i < K * R; ++i) U[i] = w == 0 ? chain[i] : U[i] + chain[i];
      for (int k = 0; k < K; ++k) u[k] += kColumns;
      for (int r = 0; r < R; ++r) sources[r] += kColumns;
    }
  }

  // dW = the sum of the splits, in their order.
  void finish_weight() {
    const int64_t size = p_.out_channels * products_;
    for (int64_t split = 1; split < plan_.splits; ++split)
      for (int64_t i = 0; i < size; ++i) grad_weights_[i] += grad_weights_[split * size + i];
    with_storage<A>(p_.dtype, [&](auto element) { store_weight<decltype(element)>(); });
  }

  template <class T>
  void store_weight() {
    const View& out = args_.grad_weight;
    const A* src = grad_weights_;
    for (int64_t k = 0; k < p_.out_channels; ++k)
      for (int64_t c = 0; c < p_.group_in(); ++c)
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
          for (int64_t kw = 0; kw < p_.w.kernel; ++kw)
            static_cast<T*>(out.data)[k * out.n + c * out.c + kh * out.h + kw * out.w] = narrow<T>(*src++);
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const Taps h_, w_;
  const int64_t taps_, products_;
  const int64_t u_row_;  // elements from one row of u to the next
  const UnitPlan plan_;
  const PlaneShape shape_;
  const std::vector<int64_t> offsets_;  // of each product in the planes of a group
  const Factors<A> gamma_;
  Scratch<A> weight_;
  TapSums<A> tap_sums_;
  Scratch<A> grad_weights_;  // of each split
  UnitSums sums_;
};

}  // namespace

void run_grad_weight_in_planes(const Problem& p, const GradWeightArgs& args) {
  p.dtype == DType::f64 ? GradWeightPlanes<double>(p, args)() : GradWeightPlanes<float>(p, args)();
}

}  // namespace film::FILM_ISA
