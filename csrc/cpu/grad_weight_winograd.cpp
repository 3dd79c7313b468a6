// grad_weight.cpp's sums by Winograd's filtering (winograd.h). With X = B^T x B of the input's tiles and Q = A u A^T of
// the gradient's, U = G^T (the sum over tiles of Q * X) G: at each point the sum over a unit's tiles is a matrix
// product of its own, of output channels by input channels.
//
// - Of several samples, dgamma comes from the sums at the points, since <W, U> = <G W G^T, the sum of Q * X>. For dW
//   they are added over all units, times gamma, and transformed once at the end.
// - Of a single sample, the sums over all units are transformed at the end to U itself, and both dW and dgamma come
//   from that.
// - Where x has a mean, X is made of x without it, and what dW then lacks is added at the end (centre.h).
//
// Units go in rounds. First all tiles of a round are transformed, and threads share the units (winograd_units.h). Then
// they are multiplied, and threads share the parts of the weights, each of which stays in L2 for all points. Each sum
// belongs to one part, and takes the units in their order.
#include <atomic>
#include <cmath>
#include <optional>

#include "modulated.h"
#include "unit_tile.h"
#include "weight_order.h"
#include "winograd_units.h"

namespace film::FILM_ISA {
namespace {

constexpr int64_t kChainTiles = 32;  // tiles that are added in one chain, where digits are short

template <class T>
class GradWeightWinograd {
 public:
  GradWeightWinograd(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        units_(p, args),
        pieces_(p.h.kernel, p.w.kernel),
        order_(p.h.kernel, p.w.kernel),
        gamma_(p, args.gamma, layout_.outputs, static_cast<float>(p.gamma_offset), 1),
        kept_sums_(keeps_sums() ? layout_.parts() * part_size() : 0),
        dots_(layout_.input_ranges * layout_.round_units * layout_.outputs),
        sums_(p, layout_.sample_units, layout_.outputs) {}

  // Returns whether all is finite. Where it is not, everything is to be computed directly.
  bool operator()() {
    for (int64_t g = 0; g < p_.groups && finite_; ++g) {
      tap_sums_.reset();
      for (int64_t first = 0; first < layout_.units; first += layout_.round_units) {
        const Round round{first, std::min(layout_.round_units, layout_.units - first)};
        units_.transform(g, round, sums_);
        if (gamma_wanted()) shift_sums(g, round);
        multiply(g, round);
        if (gamma_wanted()) add_dots(g, round);
      }
    }
    if (finite_) sums_.finish(p_, args_, gamma_);
    return finite_;
  }

 private:
  using Layout = UnitLayout<T>;
  static constexpr int L = kLanes<float>, RH = T::H::R, RW = T::W::R, kPoints = T::kPoints;
  static constexpr int64_t kOutputs = Layout::kOutputs;
  // A part of W or dW at the points is [piece][point][output channel][input channel], and from one point to the next
  // there is a vector more, so that the points do not fall into the same cache sets.
  static constexpr int64_t kPartPoint = kOutputs * Layout::kInputs + L;
  int64_t part_size() const { return pieces_.count() * kPoints * kPartPoint; }

  bool gamma_wanted() const { return args_.grad_gamma != nullptr; }
  bool weight_wanted() const { return args_.grad_weight.data != nullptr; }
  bool is_single_sample() const { return p_.batch == 1; }
  // Whether the sums over Q * X themselves are needed, and have to be kept from one round to the next.
  bool sums_wanted() const { return weight_wanted() || (is_single_sample() && gamma_wanted()); }
  bool keeps_sums() const { return layout_.round_units < layout_.units && sums_wanted(); }
  int64_t used_inputs(const WeightPart& part) const { return std::min(Layout::kInputs, p_.group_in() - part.c); }
  int64_t used_outputs(const WeightPart& part) const { return std::min(kOutputs, p_.group_out() - part.k); }

  // Sets <w, m> of the units that have had their mean taken out (centre.h).
  void shift_sums(int64_t g, const Round& round) {
    for (int64_t unit = round.first; unit < round.first + round.count; ++unit) {
      if (!units_.is_centred(unit)) continue;
      if (!tap_sums_) sum_taps(g);
      tap_sums_->dot(units_.means(unit), 0, p_.group_out(), sums_.shift(0, unit, g));
    }
  }

  void sum_taps(int64_t g) {
    const int64_t taps = p_.h.kernel * p_.w.kernel, sources = p_.group_in();
    Scratch<float> filters(taps * sources);
    tap_sums_.emplace(p_.group_out(), sources);
    for (int64_t k = 0; k < p_.group_out(); ++k) {
      load_weight(filters, sources, g, k, 0);
      tap_sums_->set(k, filters, taps, sources, 1);
    }
  }

  // Multiplies X and Q of a round, and makes dW of the sums after the last one.
  void multiply(int64_t g, const Round& round) {
    parallel(layout_.parts(), [&](int64_t begin, int64_t end) {
      Scratch<float> weight(part_size()), own_sums(keeps_sums() ? 0 : part_size());
      for (int64_t number = begin; number < end; ++number) {
        const WeightPart part = layout_.part(g, number);
        float* sums = own_sums;
        if (keeps_sums()) sums = kept_sums_ + number * part_size();
        with_lanes<float, kGradVectors>(used_inputs(part), [&](auto vectors, auto half) {
          multiply_part<decltype(vectors)::value, decltype(half)::value>(round, part, weight, sums);
        });
      }
    });
  }

  // A part of WHOLE vectors of input channels, and HALF a one behind them, for all points and for all units of the
  // round; `weight` is room for a part of W at the points.
  template <int WHOLE, int HALF>
  void multiply_part(const Round& round, const WeightPart& part, float* weight, float* sums) {
    constexpr int V = WHOLE + HALF;  // which have room
    const bool dots_wanted = gamma_wanted() && !is_single_sample();
    Scratch<Vector<float>> dots(round.count * kOutputs);  // [unit][output channel], a sum in each lane
    dots.zero(round.count * kOutputs);
    float ones[kOutputs];
    std::fill(ones, ones + kOutputs, 1.0f);
    if (dots_wanted) transform_weight<V>(weight, part);
    UnitTile<float, WHOLE, HALF> tile;
    tile.u_pitch = kOutputs;
    tile.chain = p_.dtype == DType::f32 ? kChainTiles : Layout::kMostTiles;
    for (int64_t point = 0; point < kPoints; ++point)
      for (int64_t i = 0; i < round.count; ++i) {
        const int64_t unit = round.first + i;
        const float *q = units_.q(point, part, i), *x = units_.x(point, part, i);
        const float* gamma = is_single_sample() ? ones : gamma_.at(unit / layout_.sample_units, part.g) + part.k;
        const auto [high, wide] = units_.tiles(i);
        const int64_t line = wide + pieces_.along_w - 1;  // tiles of the input from one row of tiles to the next
        // Where rows of both have as many tiles, they are one long row.
        tile.positions =
            line == wide ? PositionRows{1, high * wide, 0, V * L} : PositionRows{high, wide, line * V * L, V * L};
        tile.fresh = unit == 0;
        for (int64_t piece = 0; piece < pieces_.count(); ++piece) {
          const int64_t first_tile = piece / pieces_.along_w * line + piece % pieces_.along_w;
          const int64_t at = (piece * kPoints + point) * kPartPoint;
          tile.x = x + first_tile * V * L;
          for (int64_t m = 0; m < used_outputs(part); m += kGradRows) {
            const int64_t row = at + m * V * L;
            tile.u = q + m;
            tile.weights = {weight + row, sums_wanted() ? sums + row : nullptr, V * L, V * L};
            tile.gamma = gamma + m;
            tile.grad_gamma = dots_wanted ? dots + i * kOutputs + m : nullptr;
            tile();
          }
        }
      }
    if (round.first + round.count == layout_.units && sums_wanted())
      with_storage<float>(p_.dtype, [&](auto element) { finish_part<decltype(element), V>(part, sums, dots); });
    for (int64_t i = 0; i < round.count; ++i)
      for (int64_t m = 0; m < kOutputs; ++m)
        dots_at(part.input_range, i)[part.k + m] = sum_lanes<float>(dots[i * kOutputs + m]);
  }

  // W of output channel k and of so many input channels from c on, [tap][input channel].
  void load_weight(float* taps, int64_t sources, int64_t g, int64_t k, int64_t c) const {
    with_storage<float>(p_.dtype, [&](auto element) {
      order_.template load<decltype(element)>(taps, sources, args_.weight, g * p_.group_out() + k, c,
                                              std::min(sources, p_.group_in() - c));
    });
  }

  // G W G^T of a part. It is made anew in each round, which is little beside the round's products.
  template <int V>
  void transform_weight(float* weight, const WeightPart& part) const {
    const int64_t line = p_.w.kernel * V * L, size = p_.h.kernel * line;
    Scratch<float> taps(size);
    taps.zero(size);
    for (int64_t k = 0; k < kOutputs; ++k, weight += V * L) {
      if (k < used_outputs(part))
        load_weight(taps, V * L, part.g, part.k + k, part.c);
      else
        taps.zero(size);
      for (int64_t i = 0; i < pieces_.count(); ++i) {
        const auto piece = pieces_.at(i);
        for (int64_t c = 0; c < V * L; c += L)
          transform_filter<T, double>({weight + i * kPoints * kPartPoint + c, kPartPoint},
                                      taps + piece.h * line + piece.w * V * L + c, {line, V * L},
                                      {piece.rows, piece.columns});
      }
    }
  }

  // dW of a part, G^T (the sums) G. Of a single sample that is U, which gives <W, U> (added to `dots`) and dW.
  template <class E, int V>
  void finish_part(const WeightPart& part, const float* sums, Vector<float>* dots) {
    const int64_t sources = std::min<int64_t>(V * L, p_.group_in() - part.c);
    const bool dots_wanted = gamma_wanted() && is_single_sample();
    const int64_t size = p_.h.kernel * p_.w.kernel * V * L;
    Scratch<float> weight(size), grad_weight(size);  // [tap][input channel]
    weight.zero(size);
    Vector<float> zero_or_nan{};
    for (int64_t k = 0; k < used_outputs(part); ++k) {
      const Vector<float> factor = splat(is_single_sample() ? gamma_.at(0, part.g)[part.k + k] : 1);
      if (dots_wanted) load_weight(weight, V * L, part.g, part.k + k, part.c);
      float means[V * L];
      add_means(means, part, k);
      for (int64_t i = 0; i < pieces_.count(); ++i) {
        const auto piece = pieces_.at(i);
        for (int64_t c = 0; c < V * L; c += L) {
          Vector<float> taps[RH][RW];
          transform_sums<T>(taps, {sums + i * kPoints * kPartPoint + k * V * L + c, kPartPoint});
          for (int h = 0; h < RH; ++h)
            for (int w = 0; w < RW; ++w) {
              if (h >= piece.rows || w >= piece.columns) continue;
              const int64_t tap = ((piece.h + h) * p_.w.kernel + piece.w + w) * V * L + c;
              zero_or_nan += 0 * taps[h][w];
              if (dots_wanted) dots[k] += load(weight + tap) * taps[h][w];
              store(grad_weight + tap, factor * taps[h][w] + load(means + c));
            }
        }
      }
      if (weight_wanted())
        order_.template store<E>(args_.grad_weight, part.g * p_.group_out() + part.k + k, grad_weight, V * L, part.c,
                                 sources);
    }
    if (!is_zero<float>(zero_or_nan)) finite_ = false;
  }

  // What dW of the part's output channel number k lacks at every tap, for each input channel: the sum over units of
  // gamma * m * sum_p u.
  template <int COUNT>
  void add_means(float (&means)[COUNT], const WeightPart& part, int64_t k) {
    double total[COUNT] = {};
    for (int64_t unit = 0; unit < layout_.units; ++unit) {
      if (!units_.is_centred(unit)) continue;
      const double factor =
          gamma_.at(unit / layout_.sample_units, part.g)[part.k + k] * sums_.at(UnitSums::u, unit, part.g)[part.k + k];
      const float* mean = units_.means(unit) + part.c;
      for (int64_t c = 0; c < std::min<int64_t>(COUNT, p_.group_in() - part.c); ++c) total[c] += factor * mean[c];
    }
    for (int c = 0; c < COUNT; ++c) means[c] = static_cast<float>(total[c]);
  }

  // <W, U> of each output channel, for the round's unit number i and one range of input channels.
  double* dots_at(int64_t input_range, int64_t i) const {
    return dots_ + (input_range * layout_.round_units + i) * layout_.outputs;
  }

  // <W, U> of the units, from those of the ranges.
  void add_dots(int64_t g, const Round& round) {
    for (int64_t i = 0; i < round.count; ++i)
      for (int64_t k = 0; k < p_.group_out(); ++k) {
        double sum = 0;
        for (int64_t range = 0; range < layout_.input_ranges; ++range) sum += dots_at(range, i)[k];
        if (!std::isfinite(sum)) finite_ = false;
        sums_.product(0, round.first + i, g)[k] = sum;
      }
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  TransformedUnits<T> units_;
  const Layout& layout_ = units_.layout;
  const Pieces<T> pieces_;
  const WeightOrder<float> order_;
  const Factors<float> gamma_;
  Scratch<float> kept_sums_;                // sums over Q * X of all parts, from round to round
  Scratch<double> dots_;                    // of a round
  std::optional<TapSums<float>> tap_sums_;  // of the group, once a unit asks for them
  UnitSums sums_;
  std::atomic<bool> finite_{true};
};

}  // namespace

bool run_grad_weight_by_winograd(const Problem& p, const GradWeightArgs& args) {
  const auto in_tiles = [&](auto tiles) { return GradWeightWinograd<decltype(tiles)>(p, args)(); };
  const auto density = [&] {
    const LoadRow<float> load = row_loader<float>(p.dtype);
    const Modulated<float> gradient{p, args.grad, args.bits, nullptr, load};
    return sample_source(Plain<float>{args.input, load}, p.batch, p.h.in, p.w.in, p.groups, p.group_in()).density *
           sample_source(gradient, p.batch, p.h.out, p.w.out, p.groups, p.group_out()).density;
  };
  return with_gradient_tiles(p, density, in_tiles);
}

}  // namespace film::FILM_ISA
