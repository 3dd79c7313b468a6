// grad_weight.cpp's sums for depthwise convolutions: of each channel only its filter's products, with channels in the
// lanes. A task is a block of channels and some units, one after another, whose dW is summed together; a unit is some
// rows of one sample, or of a long row some columns. All are cut by shapes alone.
//
// The input's mean m is taken out where dgamma would lose digits (centre.h). Products with padding are left out here,
// so that U = U' + m * (sum_p u - E), where E[tap] is the sum of u over the positions at which the tap meets padding.
#include "centre.h"
#include "depthwise_rows.h"
#include "depthwise_sums.h"
#include "depthwise_units.h"
#include "unit_sums.h"

namespace film::FILM_ISA {
namespace {

template <class A>
class DepthwiseGradWeight {
 public:
  DepthwiseGradWeight(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        input_(args.input, p.dtype, p.in_channels),
        grad_(args.grad, p.dtype, p.out_channels),
        h_(forward_taps(p.h)),
        w_(forward_taps(p.w)),
        taps_(p.h.kernel * p.w.kernel),
        vectors_(parts_of(p.out_channels, L)),
        plan_(plan_depthwise_units<A>(p)),
        columns_at_hand_(plan_.along_w == 1 ? p.w.in : std::min(w_.extent(plan_.columns), p.w.in)),
        filters_(p, args.weight),
        tap_sums_(args.grad_gamma != nullptr ? p.out_channels : 0),
        gamma_(p, args.gamma, round_up(p.out_channels, L), static_cast<A>(p.gamma_offset), A(1)),
        grad_weights_(weight_wanted() ? plan_.splits * split_size() : 0),
        sums_(p, plan_.of_sample(), p.out_channels) {
    if (tap_sums_.empty()) return;
    for (int64_t t = 0; t < taps_; ++t)
      for (int64_t c = 0; c < p.out_channels; ++c) tap_sums_[c] += filters_.all()[t * p.out_channels + c];
  }

  void operator()() {
    parallel(plan_.blocks * plan_.splits, [&](int64_t begin, int64_t end) {
      Workspace space(*this);
      for (int64_t task = begin; task < end; ++task) run_task(task % plan_.blocks, task / plan_.blocks, space);
    });
    if (weight_wanted()) with_storage<A>(p_.dtype, [&](auto element) { finish_weight<decltype(element)>(); });
    sums_.finish(p_, args_, gamma_);
  }

 private:
  static constexpr int64_t L = kLanes<A>;

  struct Unit {
    int64_t number, n;
    int64_t h, rows;
    ColumnRange columns;
  };

  // What a thread has at hand, of a block's vectors; sums of single taps are [vector][tap][lane].
  struct Workspace {
    explicit Workspace(const DepthwiseGradWeight& of)
        : x(of.input_, {of.p_.h.in, of.p_.w.in, of.p_.h.kernel, of.columns_at_hand_, of.plan_.block * L}),
          grad(of.grad_, {of.p_.h.out, of.p_.w.out, 1, of.plan_.columns, of.plan_.block * L}),
          u(kDepthwiseChain<A> * L),
          U(of.plan_.block * of.taps_ * L),
          mean(of.plan_.block * L),
          sum_g(of.plan_.block * L),
          sum_u(of.plan_.block * L),
          outside(of.plan_.block * of.taps_ * L),
          centred(of.plan_.block) {}
    PixelRows<A, PlainPixels<A>> x, grad;
    Scratch<A> u, U, mean;
    Scratch<Wide<A>> sum_g, sum_u, outside;  // the last of them is E
    std::vector<char> centred;               // whether a vector of m has other numbers than 0
    A* grad_weight = nullptr;                // the split's, [vector][tap][lane], or null where it is not wanted
  };

  bool weight_wanted() const { return args_.grad_weight.data != nullptr; }
  int64_t split_size() const { return vectors_ * taps_ * L; }

  // The first channel of a vector. The last one begins further back where it would not be full.
  int64_t channel_of(int64_t vector) const { return std::max<int64_t>(std::min(vector * L, p_.out_channels - L), 0); }
  // Its lanes that the vector before has not.
  int64_t first_lane(int64_t vector) const { return vector * L - channel_of(vector); }
  int64_t end_lane(int64_t vector) const { return std::min(p_.out_channels - channel_of(vector), L); }

  void run_task(int64_t block, int64_t split, Workspace& space) {
    const int64_t v0 = block * plan_.block, count = std::min(plan_.block, vectors_ - v0);
    if (weight_wanted()) {
      space.grad_weight = grad_weights_ + split * split_size() + v0 * taps_ * L;
      std::memset(space.grad_weight, 0, count * taps_ * L * sizeof(A));
    }
    const int64_t c0 = channel_of(v0), c1 = channel_of(v0 + count - 1) + end_lane(v0 + count - 1);
    const int64_t units = p_.batch * plan_.of_sample(), end = units * (split + 1) / plan_.splits;
    int64_t loaded = -1;  // which sample and columns rows are of
    for (int64_t number = units * split / plan_.splits; number < end; ++number) {
      const int64_t n = number / plan_.of_sample(), place = number % plan_.of_sample();
      const int64_t cut = place / plan_.along_h, h = place % plan_.along_h * plan_.rows, w = cut * plan_.columns;
      const Unit unit{number, n, h, std::min(plan_.rows, p_.h.out - h), {w, std::min(plan_.columns, p_.w.out - w)}};
      if (loaded != n * plan_.along_w + cut) {
        loaded = n * plan_.along_w + cut;
        const int64_t low = w * w_.step + w_.low(), high = low + w_.extent(unit.columns.count);
        space.x.begin(n, columns_at_hand(p_.w.in, columns_at_hand_, low, high), {c0, c1 - c0});
        space.grad.begin(n, unit.columns, {c0, c1 - c0});
      }
      run_unit(unit, v0, count, space);
    }
  }

  void run_unit(const Unit& unit, int64_t v0, int64_t count, Workspace& space) {
    space.U.zero(count * taps_ * L);
    std::fill_n(space.sum_g + 0, count * L, Wide<A>(0)), std::fill_n(space.sum_u + 0, count * L, Wide<A>(0));
    std::fill(space.centred.begin(), space.centred.end(), false);
    const A* rows[kMostDepthwiseTaps] = {};
    for (int64_t h = unit.h; h < unit.h + unit.rows; ++h) {
      if (args_.products_wanted()) {
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh) {
          const int64_t row = h * h_.step + h_.offset[kh];
          rows[kh] = row < 0 || row >= p_.h.in ? nullptr : space.x.row(row);
        }
        if (args_.grad_gamma != nullptr && h == unit.h) find_means(rows, unit, v0, count, space);
      }
      const A* grad = space.grad.row(h);
      for (int64_t w = unit.columns.first; w < unit.columns.first + unit.columns.count; w += kDepthwiseChain<A>) {
        const int64_t last = std::min(w + kDepthwiseChain<A>, unit.columns.first + unit.columns.count);
        for (int64_t v = 0; v < count; ++v) add_run(rows, grad, {unit.n, h, w, last - w}, v0 + v, v, space);
      }
    }
    finish_unit(unit, v0, count, space);
  }

  // m of each channel, from some elements of the rows that the unit's first row meets: any number will do. It is 0
  // where less than a third of what the elements' squares come to is the mean's, so that taking it out would hardly
  // help; which is also so of a few elements that are larger than the rest.
  void find_means(const A* const* rows, const Unit& unit, int64_t v0, int64_t count, Workspace& space) {
    constexpr int64_t kSamples = 32, kLeastSamples = 4;
    const int64_t low = unit.columns.first * w_.step + w_.low(), from = std::clamp<int64_t>(low, 0, p_.w.in);
    const int64_t columns = std::clamp<int64_t>(low + w_.extent(unit.columns.count), from, p_.w.in) - from;
    int64_t there = 0;
    for (int64_t kh = 0; kh < p_.h.kernel; ++kh) there += rows[kh] != nullptr;
    const int64_t step = std::max<int64_t>(there * columns / kSamples, 1);
    for (int64_t v = 0; v < count; ++v) {
      const int64_t c = channel_of(v0 + v);
      Vector<A> sum{}, squares{};
      A samples = 0;
      for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
        for (int64_t w = kh % step; rows[kh] != nullptr && w < columns; w += step, ++samples) {
          const Vector<A> x = load(rows[kh] + (from + w) * space.x.pitch() + c);
          sum += x, squares += x * x;
        }
      const Mask<A> large = 3 * sum * sum > samples * squares;  // not of what is not finite, which would spread
      const Mask<A> used = lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(end_lane(v0 + v));
      const Mask<A> taken = samples < kLeastSamples ? Mask<A>{} : large & used;
      store(space.mean + v * L, taken ? sum / samples : Vector<A>{});
      space.centred[v] = to_bits<A>(taken) != 0;
      if (!space.centred[v]) continue;
      std::fill_n(space.outside + v * taps_ * L, taps_ * L, Wide<A>(0));
    }
  }

  // At most kDepthwiseChain<A> columns of a row, of one vector of channels.
  void add_run(const A* const* rows, const A* grad, const ColumnRun& columns, int64_t vector, int64_t v,
               Workspace& space) {
    const int64_t c = channel_of(vector);
    const uint8_t* bits = p_.activation == Activation::none ? nullptr : args_.bits;
    if (bits != nullptr) bits += ((columns.n * p_.h.out + columns.h) * p_.w.out + columns.first) * p_.bit_row();
    SlopedColumns<A> sums;
    sums.load_to(space.u, grad + columns.first * space.grad.pitch(), space.grad.pitch(), columns.count, bits,
                 p_.bit_row(), c, end_lane(vector), static_cast<A>(p_.lower_slope));
    sums.g.add_to(space.sum_g + v * L);
    sums.u.add_to(space.sum_u + v * L);
    if (!args_.products_wanted()) return;
    const AddDepthwiseProducts<A> add = depthwise_adder<A>(p_.w.kernel, p_.w.stride, space.centred[v]);
    const Vector<A> mean = space.centred[v] ? load(space.mean + v * L) : Vector<A>{};
    DepthwiseRun<A> run{columns.first, columns.first + columns.count, nullptr, space.x.pitch(), p_.w.in, w_.low()};
    for (int64_t kh = 0; kh < p_.h.kernel; ++kh) {
      const int64_t place = (v * taps_ + kh * p_.w.kernel) * L;
      if (rows[kh] != nullptr) {
        run.x = rows[kh] + c;
        add(space.u, run, mean, space.U + place);
      }
      if (space.centred[v]) add_outside(run, rows[kh] == nullptr, space.u, space.outside + place);
    }
  }

  // Adds the sum of u over the columns at which each tap of a row of the kernel meets padding: all, where the row does.
  void add_outside(const DepthwiseRun<A>& run, bool all, const A* u, Wide<A>* outside) const {
    for (int64_t t = 0; t < p_.w.kernel; ++t, outside += L) {
      const int64_t begin = all ? run.last : run.begin_inside(t, w_.step),
                    end = all ? run.last : run.end_inside(t, w_.step);
      ExactSum<A> sum;
      for (int64_t w = run.first; w < begin; ++w) sum.add(load(u + (w - run.first) * L));
      for (int64_t w = end; w < run.last; ++w) sum.add(load(u + (w - run.first) * L));
      sum.add_to(outside);
    }
  }

  // Both uses of a unit's U.
  void finish_unit(const Unit& unit, int64_t v0, int64_t count, Workspace& space) {
    for (int64_t v = 0; v < count; ++v) {
      const int64_t c = channel_of(v0 + v);
      Wide<A> product[L] = {};  // <W, U' - m E>
      if (space.centred[v]) put_means_back(unit.n, v, c, product, space);
      if (args_.products_wanted()) use_products(unit.n, v, c, product, space);
      double *sum_g = sums_.at(UnitSums::g, unit.number, 0) + c, *sum_u = sums_.at(UnitSums::u, unit.number, 0) + c,
             *products = sums_.product(0, unit.number, 0) + c;
      long double* shifts = sums_.shift(0, unit.number, 0) + c;
      for (int64_t lane = first_lane(v0 + v); lane < end_lane(v0 + v); ++lane) {
        sum_g[lane] = static_cast<double>(space.sum_g[v * L + lane]);
        sum_u[lane] = static_cast<double>(space.sum_u[v * L + lane]);
        products[lane] = static_cast<double>(product[lane]);
        if (space.centred[v]) shifts[lane] = tap_sums_[c + lane] * space.mean[v * L + lane];
      }
    }
  }

  // Adds gamma * U' to dW and <W, U'> to `product`.
  void use_products(int64_t n, int64_t v, int64_t c, Wide<A>* product, Workspace& space) {
    const Vector<A> gamma = load(gamma_.at(n, 0) + c);
    for (int64_t t = 0; t < taps_; ++t) {
      const A *values = space.U + (v * taps_ + t) * L, *weight = filters_.all() + t * p_.out_channels + c;
      for (int64_t lane = 0; lane < L; ++lane) product[lane] += static_cast<Wide<A>>(weight[lane]) * values[lane];
      if (space.grad_weight == nullptr) continue;
      A* at = space.grad_weight + (v * taps_ + t) * L;
      store(at, load(at) + gamma * load(values));
    }
  }

  // Adds gamma * m * (sum_p u - E) to dW and takes <W, m E> from `product`.
  void put_means_back(int64_t n, int64_t v, int64_t c, Wide<A>* product, Workspace& space) {
    const A *mean = space.mean + v * L, *gamma = gamma_.at(n, 0) + c;
    const Wide<A>* sum_u = space.sum_u + v * L;
    for (int64_t t = 0; t < taps_; ++t) {
      const Wide<A>* outside = space.outside + (v * taps_ + t) * L;
      const A* weight = filters_.all() + t * p_.out_channels + c;
      A* to = space.grad_weight == nullptr ? nullptr : space.grad_weight + (v * taps_ + t) * L;
      for (int64_t lane = 0; lane < L; ++lane) {
        product[lane] -= static_cast<Wide<A>>(weight[lane]) * mean[lane] * outside[lane];
        if (to != nullptr) to[lane] += static_cast<A>(gamma[lane] * (mean[lane] * (sum_u[lane] - outside[lane])));
      }
    }
  }

  // dW = the sum of the splits, in their order.
  template <class T>
  void finish_weight() {
    const View& out = args_.grad_weight;
    for (int64_t v = 0; v < vectors_; ++v)
      for (int64_t t = 0; t < taps_; ++t) {
        const A* of_split = grad_weights_ + (v * taps_ + t) * L;
        Vector<A> total = load(of_split);
        for (int64_t split = 1; split < plan_.splits; ++split) total += load(of_split + split * split_size());
        T* to = static_cast<T*>(out.data) + t / p_.w.kernel * out.h + t % p_.w.kernel * out.w;
        for (int64_t lane = first_lane(v); lane < end_lane(v); ++lane)
          to[(channel_of(v) + lane) * out.n] = narrow<T>(static_cast<A>(total[lane]));
      }
  }

  const Problem p_;  // without groups
  const GradWeightArgs& args_;
  const PlainPixels<A> input_, grad_;
  const Taps h_, w_;
  const int64_t taps_, vectors_;
  const DepthwiseUnits plan_;
  const int64_t columns_at_hand_;  // of a row of the input
  const DepthwiseFilters<A> filters_;
  std::vector<Wide<A>> tap_sums_;  // w of each channel (centre.h), where dgamma is wanted
  const Factors<A> gamma_;
  Scratch<A> grad_weights_;  // of each split, [vector][tap][lane]
  UnitSums sums_;
};

}  // namespace

void run_depthwise_grad_weight(const Problem& p, const GradWeightArgs& args) {
  const Problem together = without_groups(p);
  p.dtype == DType::f64 ? DepthwiseGradWeight<double>(together, args)() : DepthwiseGradWeight<float>(together, args)();
}

}  // namespace film::FILM_ISA
