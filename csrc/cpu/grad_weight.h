// dW, db, dgamma and dbeta. With u = g * slope(bits) and U[n] the weight gradient of u[n]:
//   dgamma[n, k] = <W[k], U[n, k]> + b[k] * sum_p u      dbeta = sum_p g (post) or sum_p u (pre)
// (where x has a mean, dgamma comes from x without it: centre.h)
//   dW[k] = sum_n gamma[n, k] * U[n, k]                  db[k] = sum_n gamma[n, k] * sum_p u
// U is linear in the positions, so it is worked out a unit (a block of positions of one sample) at a time: its tile
// comes out of the registers, is dotted with the tile of W, multiplied by gamma and added to the tile of dW.
//
// The work is cut by shapes alone (grad_weight_plan.h): units into splits, each with its own dW, output and source
// channels of a group into blocks. Sums over units, splits and blocks are then taken in order, so that every run gives
// the same bits. A task has its block of W and dW at hand, and walks over its products with several units at a time.
#pragma once

#include <atomic>
#include <optional>

#include "centre.h"
#include "grad_weight_plan.h"
#include "unit_sums.h"
#include "unit_tile.h"
#include "unit_u.h"
#include "weight_order.h"

namespace film::FILM_ISA {

// Some products of a stretch: `count` from place `at` on, of that of kernel tap (h, w), or of row h from tap w on.
struct ProductRange {
  int64_t h, w, at, count;
};

// A is what sums are in. An engine of pairs multiplies pairs of positions.
template <class A, class Engine = Floats<A>>
class GradWeight {
 public:
  GradWeight(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        load_(row_loader<A>(p.dtype)),
        pass_{forward_taps(p.h), forward_taps(p.w), 1, {}},
        plan_(plan_grad_weight<A>(p, pass_.h, pass_.w)),
        taps_(p.h.kernel * p.w.kernel),
        order_(p.h.kernel, p.w.kernel),
        gamma_(p, args.gamma, plan_.padded, static_cast<A>(p.gamma_offset), A(1)),
        split_weights_(weight_wanted() && plan_.splits > 1 ? plan_.splits * weight_size() : 0),
        sums_(p, plan_.units.along_h * plan_.units.along_w, p.group_out(), gamma_wanted() ? plan_.source_blocks : 0) {}

  // Returns whether all is finite, or floats are multiplied. Pairs that are not are to be multiplied as floats: where a
  // position is alone, what stands beside it is multiplied by 0.
  bool operator()() {
    parallel(plan_.tasks(p_), [&](int64_t begin, int64_t end) {
      Workspace space(plan_);
      for (int64_t number = begin; number < end; ++number) run_task(plan_.task(p_, number), space);
    });
    if (!finite_) return false;
    if (plan_.splits > 1) add_splits();
    sums_.finish(p_, args_, gamma_);
    return true;
  }

 private:
  using E = typename Engine::Element;
  static constexpr bool kPairs = !std::is_same_v<E, A>;
  using Task = GradWeightPlan::Task;

  // A unit, and its place among those that a thread has at hand.
  struct Unit {
    int64_t number, place;
    Extent extent;
  };

  // What a thread has at hand: strips and u of some units.
  struct Workspace {
    static constexpr int64_t kPastEnd = kGradVectors * kLanes<A>;  // a tile reads past its last product
    explicit Workspace(const GradWeightPlan& plan)
        : strips(plan.units_at_hand * plan.strip + kPastEnd),
          u(plan.units_at_hand * plan.u),
          pixels(LoadUnitU<A>::kPixels * plan.block),
          weight(plan.block * plan.weight_row),
          grad_weight(plan.block * plan.weight_row),
          grad_gamma(plan.units_at_hand * plan.block),
          means(plan.units_at_hand * plan.source_block),
          sums_u(plan.units_at_hand * plan.block),
          centred(plan.units_at_hand) {
      strips.zero(plan.units_at_hand * plan.strip + kPastEnd);
      pixels.zero(LoadUnitU<A>::kPixels * plan.block);
      weight.zero(plan.block * plan.weight_row);
    }
    Scratch<A> strips, u, pixels;
    Scratch<A> weight, grad_weight;  // [channel][weight_row]: the task's products (tap, source channel) of W and dW
    Scratch<Vector<A>> grad_gamma;
    Scratch<A> means, sums_u;            // of each unit, m and sum_p u,
    std::vector<char> centred;           // and whether m has been taken out
    std::optional<TapSums<A>> tap_sums;  // of the task, once a unit asks for them
  };

  bool weight_wanted() const { return args_.grad_weight.data != nullptr; }
  bool gamma_wanted() const { return args_.grad_gamma != nullptr; }
  int64_t weight_size() const { return p_.out_channels * taps_ * p_.group_in(); }

  // The task's output channels, numbered through all groups.
  ChannelRange channels_of(const Task& task) const { return {task.group * p_.group_out() + task.first, task.used}; }

  Unit unit_at(int64_t number, int64_t first) const {
    return {number, number - first, extent_of(plan_.units, pass_, p_.batch, number)};
  }

  // The task's block of W.
  template <class T>
  void load_weight(A* weight, const Task& task) const {
    const ChannelRange channels = channels_of(task);
    for (int64_t i = 0; i < channels.count; ++i, weight += plan_.weight_row)
      order_.template load<T>(weight, task.sources, args_.weight, channels.first + i, task.first_source, task.sources);
  }

  // The task's block of dW, to where it belongs or to the split's own.
  template <class T>
  void store_weight(const A* grad_weight, const Task& task) {
    const ChannelRange channels = channels_of(task);
    for (int64_t i = 0; i < channels.count; ++i, grad_weight += plan_.weight_row) {
      const int64_t k = channels.first + i;
      if (plan_.splits == 1) {
        order_.template store<T>(args_.grad_weight, k, grad_weight, task.sources, task.first_source, task.sources);
        continue;
      }
      A* of_split = split_weights_ + task.split * weight_size() + task.first_source;
      for (int64_t tap = 0; tap < taps_; ++tap)
        std::memcpy(of_split + (k * taps_ + tap) * p_.group_in(), grad_weight + tap * task.sources,
                    task.sources * sizeof(A));
    }
  }

  bool is_finite(const A* grad_weight, const Task& task) const {
    constexpr int64_t L = kLanes<A>;
    const int64_t products = taps_ * task.sources;
    Vector<A> zero{};  // times what is not finite is NaN
    for (int64_t k = 0; k < task.used; ++k, grad_weight += plan_.weight_row)
      for (int64_t i = 0; i < products; i += L) zero += load_part(grad_weight + i, products - i) * 0;
    return sum_lanes<A>(zero) == 0;
  }

  void run_task(const Task& task, Workspace& space) {
    space.tap_sums.reset();
    if (gamma_wanted())
      with_storage<A>(p_.dtype, [&](auto element) { load_weight<decltype(element)>(space.weight, task); });
    const int64_t units = plan_.units.blocks();
    const int64_t begin = units * task.split / plan_.splits, end = units * (task.split + 1) / plan_.splits;
    for (int64_t unit = begin; unit < end; unit += plan_.units_at_hand)
      run_units(unit, std::min(unit + plan_.units_at_hand, end), task, unit == begin, space);
    if (!weight_wanted()) return;
    if (kPairs && !is_finite(space.grad_weight, task)) finite_ = false;
    with_storage<A>(p_.dtype, [&](auto element) { store_weight<decltype(element)>(space.grad_weight, task); });
  }

  // Units first .. last, which are all at hand together; `fresh` where dW holds nothing yet.
  void run_units(int64_t first, int64_t last, const Task& task, bool fresh, Workspace& space) {
    for (int64_t number = first; number < last; ++number) load_unit(unit_at(number, first), task, space);
    if (!args_.products_wanted()) return;
    std::fill(space.grad_gamma + 0, space.grad_gamma + (last - first) * task.channels, Vector<A>{});
    constexpr int64_t kMost = kGradVectors * kLanes<A>;
    const int64_t stretches = plan_.row_is_one_stretch ? 1 : p_.w.kernel;
    const int64_t length = task.sources * (plan_.row_is_one_stretch ? p_.w.kernel : 1);
    for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
      for (int64_t kw = 0; kw < stretches; ++kw)
        for (int64_t at = 0; at < length; at += kMost)
          for (int64_t number = first; number < last; ++number)
            add_products(unit_at(number, first), {kh, kw, at, std::min(length - at, kMost)}, task,
                         fresh && number == first, space);
    if (!gamma_wanted()) return;
    if (weight_wanted()) put_means_back(first, last, task, space);
    for (int64_t number = first; number < last; ++number)
      for (int64_t k = 0; k < task.used; ++k) {
        const double sum = sum_lanes<A>(space.grad_gamma[(number - first) * task.channels + k]);
        if (kPairs && !std::isfinite(sum)) finite_ = false;
        sums_.product(task.source_block, number, task.group)[task.first + k] = sum;
      }
  }

  // u and the strip of a unit, its sums of u and g, and its mean taken out.
  void load_unit(const Unit& unit, const Task& task, Workspace& space) {
    const GradientSums<A> sums = LoadUnitU<A>{p_, args_, load_}(space.u + unit.place * plan_.u, space.pixels,
                                                                unit.extent, channels_of(task), task.channels);
    A* sums_u = space.sums_u + unit.place * plan_.block;
    for (int64_t c = 0; c < task.channels; ++c) sums_u[c] = static_cast<A>(sums.u(c));
    if (task.source_block == 0) {  // once, not for each of them
      double *all_u = sums_.at(UnitSums::u, unit.number, task.group) + task.first,
             *all_g = sums_.at(UnitSums::g, unit.number, task.group) + task.first;
      for (int64_t c = 0; c < task.used; ++c) all_g[c] = sums.g.at(c), all_u[c] = sums.u(c);
    }
    if (!args_.products_wanted()) return;
    A* strip = space.strips + unit.place * plan_.strip;
    const ChannelRange sources{task.group * p_.group_in() + task.first_source, task.sources};
    if constexpr (kPairs) {
      // Products of bfloat16 have all their digits in a sum of float32, so that no mean need be taken out.
      fill_strip_with_pairs(strip, unit.extent, pass_.h, pass_.w, sources, args_.input);
      for (int64_t c = 0; c < task.channels; c += kGradRows)
        pair_up_positions(space.u + unit.place * plan_.u + c * unit.extent.positions(), unit.extent);
      space.centred[unit.place] = false;
    } else {
      fill_strip(strip, unit.extent, pass_.h, pass_.w, sources, Plain<A>{args_.input, load_});
      if (gamma_wanted()) take_mean_out(unit, task, space);
    }
  }

  void take_mean_out(const Unit& unit, const Task& task, Workspace& space) {
    A* mean = space.means + unit.place * plan_.source_block;
    A* strip = space.strips + unit.place * plan_.strip;
    space.centred[unit.place] = centre_strip(strip, mean, unit.extent, pass_.h, pass_.w, task.sources);
    if (!space.centred[unit.place]) return;
    if (!space.tap_sums) {
      space.tap_sums.emplace(task.used, task.sources);
      for (int64_t k = 0; k < task.used; ++k)
        space.tap_sums->set(k, space.weight + k * plan_.weight_row, taps_, task.sources, 1);
    }
    long double* shifts = sums_.shift(task.source_block, unit.number, task.group) + task.first;
    space.tap_sums->dot(mean, 0, task.used, shifts);
  }

  // dW += gamma * m * sum_p u at every tap, for the units that had their mean taken out.
  void put_means_back(int64_t first, int64_t last, const Task& task, Workspace& space) {
    for (int64_t number = first; number < last; ++number) {
      const Unit unit = unit_at(number, first);
      if (!space.centred[unit.place]) continue;
      const A* mean = space.means + unit.place * plan_.source_block;
      const A* gamma = gamma_.at(unit.extent.n0, task.group) + task.first;
      for (int64_t k = 0; k < task.used; ++k) {
        const A factor = gamma[k] * space.sums_u[unit.place * plan_.block + k];
        for (int64_t tap = 0; tap < taps_; ++tap) {
          A* at = space.grad_weight + k * plan_.weight_row + tap * task.sources;
          for (int64_t c = 0; c < task.sources; ++c) at[c] += factor * mean[c];
        }
      }
    }
  }

  // Some products, for all output channels of the task.
  void add_products(const Unit& unit, const ProductRange& range, const Task& task, bool fresh, Workspace& space) {
    const Extent& e = unit.extent;
    const Taps &h = pass_.h, &w = pass_.w;
    const int64_t line = w.extent(e.columns) * task.sources;
    const A* strip = space.strips + unit.place * plan_.strip + (h.offset[range.h] - h.low()) * line +
                     (w.offset[range.w] - w.low()) * task.sources + range.at;
    const A* u = space.u + unit.place * plan_.u;
    const int64_t product = (range.h * p_.w.kernel + range.w) * task.sources + range.at;
    const A* weight = space.weight + product;
    A* grad_weight = weight_wanted() ? space.grad_weight + product : nullptr;
    Vector<A>* grad_gamma = space.grad_gamma + unit.place * task.channels;
    const A* gamma = gamma_.at(e.n0, task.group) + task.first;
    const auto tiles = [&](auto vectors, auto half) {
      constexpr int64_t kTogether = kPairs ? 2 : 1;  // positions
      UnitTile<A, decltype(vectors)::value, decltype(half)::value, Engine> tile;
      tile.x = reinterpret_cast<const E*>(strip);
      tile.u_pitch = kGradRows;
      tile.positions = {e.rows, (e.columns + kTogether - 1) / kTogether, h.step * line,
                        kTogether * w.step * task.sources};
      tile.fresh = fresh;
      tile.chain = kPairs ? e.positions() : plan_.chain;  // products of bfloat16 have digits to spare
      for (int64_t k = 0; k < task.channels; k += kGradRows) {
        const int64_t row = k * plan_.weight_row;
        tile.u = reinterpret_cast<const E*>(u + k * e.positions());
        tile.weights = {weight + row, grad_weight == nullptr ? nullptr : grad_weight + row, plan_.weight_row,
                        range.count};
        tile.gamma = gamma + k;
        tile.grad_gamma = gamma_wanted() ? grad_gamma + k : nullptr;
        tile();
      }
    };
    with_lanes<A, kGradVectors>(range.count, tiles);
  }

  // dW = the sum of the splits, in their order.
  void add_splits() {
    if (!weight_wanted()) return;
    const int64_t sources = p_.group_in(), size = taps_ * sources;
    parallel(p_.out_channels, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        A* total = split_weights_ + k * size;
        for (int64_t split = 1; split < plan_.splits; ++split)
          for (int64_t i = 0; i < size; ++i) total[i] += total[split * weight_size() + i];
        with_storage<A>(p_.dtype, [&](auto element) {
          order_.template store<decltype(element)>(args_.grad_weight, k, total, sources, 0, sources);
        });
      }
    });
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const LoadRow<A> load_;
  const Pass<A> pass_;
  const GradWeightPlan plan_;
  const int64_t taps_;
  const WeightOrder<A> order_;
  const Factors<A> gamma_;
  Scratch<A> split_weights_;  // of each split, dW as [channel][tap][source channel]
  UnitSums sums_;
  std::atomic<bool> finite_{true};
};

}  // namespace film::FILM_ISA
