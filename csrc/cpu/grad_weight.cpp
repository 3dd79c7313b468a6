// dW, db, dgamma and dbeta. With u = g * slope(bits) and U[n] the weight gradient of u[n]:
//   dgamma[n, k] = <W[k], U[n, k]> + b[k] * sum_p u      dbeta = sum_p g (post) or sum_p u (pre)
// (where x has a mean, dgamma comes from x without it: centre.h)
//   dW[k] = sum_n gamma[n, k] * U[n, k]                  db[k] = sum_n gamma[n, k] * sum_p u
// U is linear in the positions, so it is worked out a unit (a block of positions of one sample) at a time: its tile
// comes out of the registers, is dotted with the tile of W, multiplied by gamma and added to the tile of dW.
//
// The work is cut by shapes alone, never by the number of threads: units into splits, each with its own dW, output and
// input channels into blocks. Sums over units, splits and blocks are then taken in order, so that every run gives the
// same bits. A task has its part of W and dW at hand, and walks over its products with several units at a time.
#include <optional>

#include "centre.h"
#include "flatten.h"
#include "planes_choice.h"
#include "unit_sums.h"
#include "unit_tile.h"
#include "weight_order.h"
#include "winograd.h"

namespace film::FILM_ISA {
namespace {

constexpr int64_t kUnitPositions = 256;     // of one unit, at most (a row may be cut, rows are put together)
constexpr int64_t kTasks = 32;              // aimed at, so that many cores have work,
constexpr int64_t kSplitPositions = 512;    // but a split has its own dW, which pays for so many positions only,
constexpr int64_t kFewPositions = 192;      // or for so many where dW has
constexpr int64_t kSmallWeight = 64 << 10;  // no more elements
constexpr int64_t kBatchBytes = 320 << 10;  // of strips and u that a task has at hand: L2 holds them
constexpr int64_t kPiece = 32;              // positions of u that are loaded together

// Channels of one task, at most. Larger blocks load each tensor less often, which is most of the work beside the
// products where there is one kernel tap; but the task's parts of W and dW should stay in L2.
constexpr int64_t kMostProducts = 1200;
struct MostChannels {
  int64_t out, in;
};
inline MostChannels most_channels(const Problem& p) {
  const int64_t taps = p.h.kernel * p.w.kernel;
  return taps == 1 ? MostChannels{kMostChannels, 384} : MostChannels{64, std::max<int64_t>(kMostProducts / taps, 48)};
}

template <class A>
class GradWeight {
 public:
  GradWeight(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        load_(row_loader<A>(p.dtype)),
        h_(forward_taps(p.h)),
        w_(forward_taps(p.w)),
        pass_{h_, w_, 1, {}},
        units_(unit_blocks()),
        unit_count_(units_.blocks()),
        channels_(p.group_out()),
        padded_(round_up(channels_, kGradRows)),
        block_(round_up(share_evenly(padded_, most_channels(p).out), kGradRows)),
        blocks_((padded_ + block_ - 1) / block_),
        source_block_(source_block()),
        source_blocks_((p.group_in() + source_block_ - 1) / source_block_),
        taps_(p.h.kernel * p.w.kernel),
        order_(p.h.kernel, p.w.kernel),
        row_((taps_ * source_block_ + kLine - 1) / kLine / 2 * 2 * kLine + kLine),
        chain_(p.positions() < kSplitPositions ? 16 : 32),
        in_one_run_(w_.consecutive() && source_blocks_ == 1),
        splits_(std::clamp<int64_t>(
            std::min(kTasks / (blocks_ * source_blocks_ * p.groups), p.positions() / split_positions()), 1,
            unit_count_)),
        gamma_(p, args.gamma, padded_, static_cast<A>(p.gamma_offset), A(1)),
        partial_(args.grad_weight.data == nullptr || splits_ == 1 ? 0 : splits_ * weight_size()),
        sums_(p, units_.along_h * units_.along_w, channels_, args.grad_gamma == nullptr ? 0 : source_blocks_) {}

  void operator()() {
    parallel(splits_ * p_.groups * blocks_ * source_blocks_, [&](int64_t begin, int64_t end) {
      Workspace space(*this);
      for (int64_t task = begin; task < end; ++task) run_task(task, space);
    });
    if (splits_ > 1) add_splits();
    sums_.finish(p_, args_, gamma_);
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(A);

  // What a thread has at hand: strips and u of some units.
  struct Workspace {
    explicit Workspace(const GradWeight& of)
        : strip_size(of.h_.extent(of.units_.rows) * of.w_.extent(of.units_.columns) * of.source_block_),
          u_size(of.units_.rows * of.units_.columns * of.block_),
          units(std::clamp<int64_t>(kBatchBytes / ((strip_size + u_size) * sizeof(A)), 1,
                                    (of.unit_count_ + of.splits_ - 1) / of.splits_)),
          strips(units * strip_size + kGradVectors * kLanes<A>),  // a tile reads past its last product
          u(units * u_size),
          piece(kPiece * of.block_),
          weight(of.block_ * of.row_),
          grad_weight(of.block_ * of.row_),
          grad_gamma(units * of.block_),
          means(units * of.source_block_),
          sums_u(units * of.block_),
          centred(units) {
      strips.zero(units * strip_size + kGradVectors * kLanes<A>);
      piece.zero(kPiece * of.block_);
      weight.zero(of.block_ * of.row_);
    }
    const int64_t strip_size, u_size, units;
    Scratch<A> strips, u, piece;
    Scratch<A> weight, grad_weight;  // [channel][row_]: the task's products (tap, source channel) of W and dW
    Scratch<Vector<A>> grad_gamma;
    Scratch<A> means, sums_u;            // of each unit, m and sum_p u,
    std::vector<char> centred;           // and whether m has been taken out
    std::optional<TapSums<A>> tap_sums;  // of the task, once a unit asks for them
  };

  // The channels of a task.
  struct Part {
    int64_t g, k0, channels, source, c0, sources;
  };

  Blocks unit_blocks() const {
    const int64_t columns = share_evenly(p_.w.out, kUnitPositions);
    const int64_t rows = p_.w.out <= kUnitPositions ? share_evenly(p_.h.out, kUnitPositions / p_.w.out) : 1;
    return blocks_of(1, rows, columns, p_.batch, h_, w_);
  }

  int64_t source_block() const {
    const int64_t even = share_evenly(p_.group_in(), most_channels(p_).in);
    return even == p_.group_in() ? even : round_up(even, kGradVectors * kLanes<A>);
  }

  int64_t split_positions() const { return weight_size() <= kSmallWeight ? kFewPositions : kSplitPositions; }
  int64_t weight_size() const { return p_.out_channels * taps_ * p_.group_in(); }

  // The task's part of W.
  template <class T>
  void load_weight(A* weight, const Part& part) const {
    const int64_t k = part.g * channels_ + part.k0;
    for (int64_t i = 0; i < std::min(part.channels, channels_ - part.k0); ++i, weight += row_)
      order_.template load<T>(weight, part.sources, args_.weight, k + i, part.c0, part.sources);
  }

  // The task's part of dW, to where it belongs or to the split's own.
  template <class T>
  void store_weight(const A* grad_weight, const Part& part, int64_t split) {
    for (int64_t i = 0; i < std::min(part.channels, channels_ - part.k0); ++i, grad_weight += row_) {
      const int64_t k = part.g * channels_ + part.k0 + i;
      if (splits_ == 1) {
        order_.template store<T>(args_.grad_weight, k, grad_weight, part.sources, part.c0, part.sources);
        continue;
      }
      for (int64_t tap = 0; tap < taps_; ++tap)
        std::memcpy(partial_ + split * weight_size() + (k * taps_ + tap) * p_.group_in() + part.c0,
                    grad_weight + tap * part.sources, part.sources * sizeof(A));
    }
  }

  void run_task(int64_t task, Workspace& space) {
    const int64_t source = task % source_blocks_, block = task / source_blocks_ % blocks_;
    const int64_t g = task / source_blocks_ / blocks_ % p_.groups, split = task / source_blocks_ / blocks_ / p_.groups;
    const int64_t k0 = block * block_, c0 = source * source_block_;
    const Part part{g, k0, std::min(block_, padded_ - k0), source, c0, std::min(source_block_, p_.group_in() - c0)};
    space.tap_sums.reset();
    if (args_.grad_gamma != nullptr)
      with_storage<A>(p_.dtype, [&](auto element) { load_weight<decltype(element)>(space.weight, part); });
    const int64_t begin = unit_count_ * split / splits_, last = unit_count_ * (split + 1) / splits_;
    for (int64_t unit = begin; unit < last; unit += space.units)
      run_units(unit, std::min(unit + space.units, last), part, unit == begin, space);
    if (args_.grad_weight.data != nullptr)
      with_storage<A>(p_.dtype, [&](auto element) { store_weight<decltype(element)>(space.grad_weight, part, split); });
  }

  void run_units(int64_t first, int64_t last, const Part& part, bool fresh, Workspace& space) {
    for (int64_t unit = first; unit < last; ++unit) {
      const Extent e = extent_of(units_, pass_, p_.batch, unit);
      load_u(space.u + (unit - first) * space.u_size, space.piece, space.sums_u + (unit - first) * block_, e, unit,
             part);
      if (!args_.products_wanted()) continue;
      fill_strip(space.strips + (unit - first) * space.strip_size, e, h_, w_, part.g * p_.group_in() + part.c0,
                 part.sources, Plain<A>{args_.input, load_});
      if (args_.grad_gamma != nullptr) take_mean_out(unit, unit - first, e, part, space);
    }
    if (!args_.products_wanted()) return;
    std::fill(space.grad_gamma + 0, space.grad_gamma + (last - first) * part.channels, Vector<A>{});
    const int64_t runs_in_row = in_one_run_ ? 1 : p_.w.kernel, length = part.sources * (in_one_run_ ? p_.w.kernel : 1);
    for (int64_t kh = 0; kh < p_.h.kernel; ++kh)
      for (int64_t kw = 0; kw < runs_in_row; ++kw)
        for (int64_t at = 0; at < length; at += kGradVectors * kLanes<A>)
          for (int64_t unit = first; unit < last; ++unit)
            add_products(unit, unit - first, kh, kw, at, std::min<int64_t>(length - at, kGradVectors * kLanes<A>), part,
                         fresh && unit == first, space);
    if (args_.grad_gamma == nullptr) return;
    if (args_.grad_weight.data != nullptr) put_means_back(first, last, part, space);
    const int64_t used = std::min(part.channels, channels_ - part.k0);
    for (int64_t unit = first; unit < last; ++unit)
      for (int64_t k = 0; k < used; ++k)
        sums_.product(part.source, unit, part.g)[part.k0 + k] =
            sum_lanes<A>(space.grad_gamma[(unit - first) * part.channels + k]);
  }

  void take_mean_out(int64_t unit, int64_t i, const Extent& e, const Part& part, Workspace& space) {
    A* mean = space.means + i * source_block_;
    space.centred[i] = centre_strip(space.strips + i * space.strip_size, mean, e, h_, w_, part.sources);
    if (!space.centred[i]) return;
    const int64_t used = std::min(part.channels, channels_ - part.k0);
    if (!space.tap_sums) {
      space.tap_sums.emplace(used, part.sources);
      for (int64_t k = 0; k < used; ++k) space.tap_sums->set(k, space.weight + k * row_, taps_, part.sources, 1);
    }
    space.tap_sums->dot(mean, 0, used, sums_.shift(part.source, unit, part.g) + part.k0);
  }

  // dW += gamma * m * sum_p u at every tap, for the units that had their mean taken out.
  void put_means_back(int64_t first, int64_t last, const Part& part, Workspace& space) {
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t i = unit - first;
      if (!space.centred[i]) continue;
      const A* mean = space.means + i * source_block_;
      const A* gamma = gamma_.at(extent_of(units_, pass_, p_.batch, unit).n0, part.g) + part.k0;
      for (int64_t k = 0; k < std::min(part.channels, channels_ - part.k0); ++k) {
        const A factor = gamma[k] * space.sums_u[i * block_ + k];
        for (int64_t tap = 0; tap < taps_; ++tap) {
          A* at = space.grad_weight + k * row_ + tap * part.sources;
          for (int64_t c = 0; c < part.sources; ++c) at[c] += factor * mean[c];
        }
      }
    }
  }

  // The products at .. at + valid of one run, for all output channels of the task.
  void add_products(int64_t unit, int64_t i, int64_t kh, int64_t kw, int64_t at, int64_t valid, const Part& part,
                    bool fresh, Workspace& space) {
    constexpr int L = kLanes<A>;
    const Extent e = extent_of(units_, pass_, p_.batch, unit);
    const int64_t line = w_.extent(e.columns) * part.sources;
    const A* x = space.strips + i * space.strip_size + (h_.offset[kh] - h_.low()) * line +
                 (w_.offset[kw] - w_.low()) * part.sources + at;
    const A* u = space.u + i * space.u_size;
    const int64_t place = (kh * p_.w.kernel + kw) * part.sources + at;
    const A* weight = space.weight + place;
    A* grad_weight = args_.grad_weight.data == nullptr ? nullptr : space.grad_weight + place;
    Vector<A>* grad_gamma = space.grad_gamma + i * part.channels;
    const A* gamma = gamma_.at(e.n0, part.g) + part.k0;
    const auto tiles = [&](auto vectors) {
      for (int64_t k = 0; k < part.channels; k += kGradRows)
        UnitTile<A, decltype(vectors)::value>{u + k * e.positions(),
                                              x,
                                              kGradRows,
                                              e.rows,
                                              e.columns,
                                              h_.step * line,
                                              w_.step * part.sources,
                                              weight + k * row_,
                                              grad_weight == nullptr ? nullptr : grad_weight + k * row_,
                                              row_,
                                              valid,
                                              gamma + k,
                                              args_.grad_gamma == nullptr ? nullptr : grad_gamma + k,
                                              fresh,
                                              chain_}();
    };
    with_constant<kGradVectors>((valid + L - 1) / L, tiles);
  }

  // u of a unit as [tile of channels][position][kGradRows], zeros in channels that do not exist, and its sums: to
  // `sums_u`, and (once, not for each source block) to those of the unit, with g's.
  void load_u(A* u, A* piece, A* sums_u, const Extent& e, int64_t unit, const Part& part) {
    const int64_t channels = part.channels, used = std::min(channels, channels_ - part.k0);
    const int64_t k = part.g * channels_ + part.k0;
    const bool linear = p_.activation == Activation::none;
    ChannelSums<A> sum_u, sum_g;
    const auto add = [&](ChannelSums<A>& sums, int64_t columns) { sums.add(piece, channels, columns, used); };
    const int64_t tile_size = e.positions() * kGradRows;
    for (int64_t h = e.h0; h < e.h0 + e.rows; ++h)
      for (int64_t w = e.w0; w < e.w0 + e.columns; w += kPiece) {
        const int64_t columns = std::min(kPiece, e.w0 + e.columns - w);
        if (used < channels) std::memset(piece, 0, columns * channels * sizeof(A));
        load_(piece, channels, args_.grad, e.n0, h, w, w + columns, k, used);
        add(sum_g, columns);
        if (!linear) {
          const uint8_t* bits = args_.bits + ((e.n0 * p_.h.out + h) * p_.w.out + w) * p_.bit_row();
          apply_bits<A>(piece, channels, columns, used, bits, p_.bit_row(), k, static_cast<A>(p_.lower_slope), nullptr);
          add(sum_u, columns);
        }
        for (int64_t i = 0; i < columns; ++i, u += kGradRows)
          for (int64_t c = 0; c < channels; c += kGradRows)
            std::memcpy(u + c / kGradRows * tile_size, piece + i * channels + c, kGradRows * sizeof(A));
      }
    for (int64_t c = 0; c < channels; ++c) sums_u[c] = static_cast<A>(linear ? sum_g.at(c) : sum_u.at(c));
    if (part.source != 0) return;
    double *all_u = sums_.at(UnitSums::u, unit, part.g) + part.k0,
           *all_g = sums_.at(UnitSums::g, unit, part.g) + part.k0;
    for (int64_t c = 0; c < used; ++c) {
      all_g[c] = sum_g.at(c);
      all_u[c] = linear ? all_g[c] : sum_u.at(c);
    }
  }

  // dW = the sum of the splits, in their order.
  void add_splits() {
    if (args_.grad_weight.data == nullptr) return;
    const int64_t sources = p_.group_in(), size = taps_ * sources;
    parallel(p_.out_channels, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        A* total = partial_ + k * size;
        for (int64_t split = 1; split < splits_; ++split)
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
  const Taps h_, w_;
  const Pass<A> pass_;
  const Blocks units_;
  const int64_t unit_count_, channels_, padded_, block_, blocks_;  // output channels of a group, and their blocks
  const int64_t source_block_, source_blocks_, taps_;
  const WeightOrder<A> order_;
  const int64_t row_;      // from one output channel to the next in a task's W and dW: an odd number of lines, so that
                           // the rows of a tile do not fall into the same cache sets
  const int64_t chain_;    // positions that are added in one chain: of few, a longer one would lose too many digits
  const bool in_one_run_;  // whether products (kw, c) of one kernel row are side by side in a strip
  const int64_t splits_;
  const Factors<A> gamma_;
  Scratch<A> partial_;  // of each split, [channel][tap][source channel]
  UnitSums sums_;
};

}  // namespace

void run_grad_weight_in_planes(const Problem&, const GradWeightArgs&);    // grad_weight_planes.cpp
bool run_grad_weight_by_winograd(const Problem&, const GradWeightArgs&);  // grad_weight_winograd.cpp: whether it could

void run_grad_weight(const Problem& problem, const GradWeightArgs& given) {
  if (given.products_wanted() && run_grad_weight_by_winograd(problem, given)) return;
  Problem p = problem;
  GradWeightArgs args = given;
  flatten(p, kPlaneColumns, args.grad, args.input);
  const int64_t run = p.w.dilation == 1 ? p.w.kernel * p.group_in() : p.group_in();
  if (!has_long_rows(p) && suits_planes(p, args.grad, run, p.group_in(), p.group_in() * p.h.kernel * p.w.kernel))
    return run_grad_weight_in_planes(p, args);
  flatten(p, kOneRow, args.grad, args.input);
  p.dtype == DType::f64 ? GradWeight<double>(p, args)() : GradWeight<float>(p, args)();
}

}  // namespace film::FILM_ISA
