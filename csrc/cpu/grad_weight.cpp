// dW, db, dgamma and dbeta. With u = g * slope(bits) and U[n] the weight gradient of u[n]:
//   dgamma[n, k] = <W[k], U[n, k]> + b[k] * sum_p u      dbeta = sum_p g (post) or sum_p u (pre)
//   dW[k] = sum_n gamma[n, k] * U[n, k]                  db[k] = sum_n gamma[n, k] * sum_p u
// U is linear in the positions, so it is worked out a unit (a block of positions of one sample) at a time: its tile
// comes out of the registers, is dotted with the tile of W, multiplied by gamma and added to the tile of dW.
//
// The work is cut by shapes alone, never by the number of threads: units into splits, each with its own dW, channels
// into blocks. Sums over units and splits are then taken in order, so that every run gives the same bits.
#include <cmath>

#include "grad_weight_tile.h"
#include "planes.h"
#include "unit_sums.h"
#include "winograd.h"

namespace film::FILM_ISA {
namespace {

constexpr int64_t kUnitPositions = 256;  // of one unit, at most (a row may be cut, rows are put together)
constexpr int64_t kRun = 16;             // positions summed in one chain
constexpr int64_t kTasks = 32;           // aimed at, so that many cores have work

// Products (kw, c) of one kernel row are contiguous in a strip where dilation is 1; otherwise one kernel tap's are.
struct Runs {
  int64_t count, length, padded;
  int64_t row() const { return count * padded; }  // elements of one output channel in W and dW
};

template <class A>
class GradWeight {
 public:
  GradWeight(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        load_(row_loader<A>(p.dtype)),
        h_(forward_taps(p.h)),
        w_(forward_taps(p.w)),
        runs_(runs(p, w_)),
        pass_{h_, w_, 1, {}},
        units_(unit_blocks(p)),
        unit_count_(p.batch * units_.along_h * units_.along_w),
        channels_(p.group_out()),
        padded_(round_up(channels_, kGradRows)),
        block_(std::min(kChannelBlock / kGradRows * kGradRows, padded_)),
        channel_blocks_((padded_ + block_ - 1) / block_),
        products_wanted_(args.grad_weight.data != nullptr || args.grad_gamma != nullptr),
        splits_(std::clamp<int64_t>(kTasks / (channel_blocks_ * p.groups), 1, std::max<int64_t>(unit_count_, 1))),
        gamma_(p, args.gamma, padded_, static_cast<A>(p.gamma_offset), A(1)),
        weight_(products_wanted_ ? weight_size() : 0),
        partial_(args.grad_weight.data != nullptr ? splits_ * weight_size() : 0),
        sums_(p, units_.along_h * units_.along_w, padded_) {}

  void operator()() {
    if (products_wanted_) pack_weight();
    parallel(splits_ * p_.groups * channel_blocks_, [&](int64_t begin, int64_t end) {
      const int64_t strip_size = h_.extent(units_.rows) * w_.extent(units_.columns) * p_.group_in();
      // a tile reads past the last product by less than its width
      Scratch<A> strip(strip_size + kGradVectors * kLanes<A>), u(units_.rows * units_.columns * block_);
      Scratch<Vector<A>> grad_gamma(block_);
      strip.zero(strip_size + kGradVectors * kLanes<A>);
      for (int64_t task = begin; task < end; ++task) run_task(task, strip, u, grad_gamma);
    });
    finish_weight();
    sums_.finish(p_, args_, gamma_);
  }

 private:
  static Runs runs(const Problem& p, const Taps& w) {
    const int64_t length = w.consecutive() ? p.w.kernel * p.group_in() : p.group_in();
    return {p.h.kernel * p.w.kernel * p.group_in() / std::max<int64_t>(length, 1), length, round_up(length, kLanes<A>)};
  }

  static Blocks unit_blocks(const Problem& p) {
    Blocks b{1, 1, std::min(p.w.out, kUnitPositions), p.batch, 0, 0};
    if (p.w.out <= kUnitPositions) b.rows = std::min(p.h.out, kUnitPositions / std::max<int64_t>(p.w.out, 1));
    b.along_h = (p.h.out + b.rows - 1) / b.rows;
    b.along_w = (p.w.out + b.columns - 1) / std::max<int64_t>(b.columns, 1);
    return b;
  }

  int64_t weight_size() const { return p_.groups * padded_ * runs_.row(); }

  // W as [group][channel][run][product], zeros after each run.
  void pack_weight() {
    weight_.zero(weight_size());
    const int64_t taps_in_run = runs_.length / std::max<int64_t>(p_.group_in(), 1);
    parallel(p_.out_channels, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        A* dst = weight_ + (k / channels_ * padded_ + k % channels_) * runs_.row();
        int64_t tap = 0;
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
          for (int64_t kw = 0; kw < p_.w.kernel; ++kw, ++tap)
            load_(dst + tap / taps_in_run * runs_.padded + tap % taps_in_run * p_.group_in(), p_.group_in(),
                  args_.weight, k, kh, kw, kw + 1, 0, p_.group_in());
      }
    });
  }

  void run_task(int64_t task, A* strip, A* u, Vector<A>* grad_gamma) {
    const int64_t block = task % channel_blocks_, g = task / channel_blocks_ % p_.groups;
    const int64_t split = task / channel_blocks_ / p_.groups;
    const int64_t k0 = block * block_, channels = std::min(block_, padded_ - k0);
    A* grad_weight = nullptr;
    if (args_.grad_weight.data != nullptr) {
      grad_weight = partial_ + split * weight_size() + (g * padded_ + k0) * runs_.row();
      std::memset(grad_weight, 0, channels * runs_.row() * sizeof(A));
    }
    const int64_t first = unit_count_ * split / splits_, last = unit_count_ * (split + 1) / splits_;
    for (int64_t unit = first; unit < last; ++unit) {
      const Extent e = extent_of(units_, pass_, p_.batch, unit);
      load_unit(u, p_, args_, load_, sums_, e, unit, g, k0, channels);
      if (!products_wanted_) continue;
      fill_strip(strip, e, h_, w_, g * p_.group_in(), p_.group_in(), Plain<A>{args_.input, load_});
      std::fill(grad_gamma, grad_gamma + channels, Vector<A>{});
      walk_products(strip, u, e, g, k0, channels, grad_weight, args_.grad_gamma != nullptr ? grad_gamma : nullptr);
      if (args_.grad_gamma == nullptr) continue;
      for (int64_t k = 0; k < channels; ++k) {
        double sum = 0;
        for (int lane = 0; lane < kLanes<A>; ++lane) sum += grad_gamma[k][lane];
        sums_.at(UnitSums::product, unit, g)[k0 + k] = sum;
      }
    }
  }

  void walk_products(const A* strip, const A* u, const Extent& e, int64_t g, int64_t k0, int64_t channels,
                     A* grad_weight, Vector<A>* grad_gamma) {
    constexpr int L = kLanes<A>;
    const int64_t pixel = p_.group_in(), line = w_.extent(e.columns) * pixel;
    const int64_t runs_in_row = runs_.count / p_.h.kernel;
    const A* weight = weight_ + (g * padded_ + k0) * runs_.row();
    for (int64_t run = 0; run < runs_.count; ++run) {
      const int64_t kh = run / runs_in_row, kw = run % runs_in_row;
      const A* x = strip + (h_.offset[kh] - h_.low()) * line + (w_.offset[kw] - w_.low()) * pixel;
      for (int64_t at = 0; at < runs_.length; at += kGradVectors * L) {
        const int64_t valid = std::min<int64_t>(runs_.length - at, kGradVectors * L);
        const int64_t column = run * runs_.padded + at;
        for (int64_t k = 0; k < channels; k += kGradRows) {
          const auto tile = [&](auto vectors) {
            UnitTile<A, decltype(vectors)::value, kRun>{
                u + k,
                x + at,
                e.rows,
                e.columns,
                channels,
                h_.step * line,
                w_.step * pixel,
                weight + k * runs_.row() + column,
                grad_weight == nullptr ? nullptr : grad_weight + k * runs_.row() + column,
                true,
                runs_.row(),
                valid,
                gamma_.at(e.n0, g) + k0 + k,
                grad_gamma == nullptr ? nullptr : grad_gamma + k}();
          };
          switch ((valid + L - 1) / L) {
            case 1:
              tile(std::integral_constant<int, 1>{});
              break;
            case 2:
              tile(std::integral_constant<int, 2>{});
              break;
            case 3:
              tile(std::integral_constant<int, 3>{});
              break;
#if defined(__aarch64__)
            case 4:
              tile(std::integral_constant<int, 4>{});
              break;
#endif
          }
        }
      }
    }
  }

  // dW = the sum of the splits, in their order, into the weight's own layout and type.
  void finish_weight() {
    if (args_.grad_weight.data == nullptr) return;
    with_storage<A>(p_.dtype, [&](auto element) { store_weight<decltype(element)>(); });
  }

  template <class T>
  void store_weight() {
    const View& out = args_.grad_weight;
    const int64_t pixel = p_.group_in(), taps_in_run = runs_.length / std::max<int64_t>(pixel, 1);
    parallel(p_.out_channels, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        A* total = partial_ + (k / channels_ * padded_ + k % channels_) * runs_.row();
        for (int64_t split = 1; split < splits_; ++split)
          for (int64_t i = 0; i < runs_.row(); ++i) total[i] += total[split * weight_size() + i];
        T* dst = static_cast<T*>(out.data) + k * out.n;
        int64_t tap = 0;
        for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
          for (int64_t kw = 0; kw < p_.w.kernel; ++kw, ++tap)
            for (int64_t c = 0; c < pixel; ++c)
              dst[c * out.c + kh * out.h + kw * out.w] =
                  narrow<T>(total[tap / taps_in_run * runs_.padded + tap % taps_in_run * pixel + c]);
      }
    });
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const LoadRow<A> load_;
  const Taps h_, w_;
  const Runs runs_;
  const Pass<A> pass_;
  const Blocks units_;
  const int64_t unit_count_, channels_, padded_, block_, channel_blocks_;
  const bool products_wanted_;
  const int64_t splits_;
  const Factors<A> gamma_;
  Scratch<A> weight_, partial_;
  UnitSums sums_;
};

}  // namespace

void run_grad_weight_in_planes(const Problem&, const GradWeightArgs&);    // grad_weight_planes.cpp
bool run_grad_weight_by_winograd(const Problem&, const GradWeightArgs&);  // grad_weight_winograd.cpp: whether it could

void run_grad_weight(const Problem& p, const GradWeightArgs& args) {
  if (suits_planes(p, args.grad)) return run_grad_weight_in_planes(p, args);
  if (suits_winograd(p) && run_grad_weight_by_winograd(p, args)) return;
  p.dtype == DType::f64 ? GradWeight<double>(p, args)() : GradWeight<float>(p, args)();
}

}  // namespace film::FILM_ISA
