// grad_weight.cpp's sums by Winograd's filtering (winograd.h): with X = B^T x B and Q = A u A^T of every tile, each
// point is a matrix product over a unit's tiles of its own, and U = G^T (sum over tiles of Q * X) G. Several samples
// have their dgamma from before that, <G W G^T, sum of Q * X>, and dW's sum over units is transformed once at the end;
// a single sample has U itself at the end, and both dW and dgamma from it. Where x has a mean, X is of x without it,
// and what dW lacks then is added at the end (centre.h).
//
// Units go in rounds: first all their tiles are transformed, units shared out among threads, then multiplied, parts of
// the weights shared out, each of which stays in L2 for all points. Each sum belongs to one part and takes the units in
// order.
#include <cmath>
#include <numeric>
#include <optional>

#include "centre.h"
#include "modulated.h"
#include "unit_sums.h"
#include "unit_tile.h"
#include "weight_order.h"
#include "winograd.h"

namespace film::FILM_ISA {
namespace {

constexpr int64_t kRoundBytes = 4 << 20;
constexpr int64_t kMostUnitTiles = 64;  // of one unit, at most
constexpr int64_t kChainTiles = 32;     // tiles that are added in one chain, where digits are short

template <class T>
class GradWeightWinograd {
 public:
  GradWeightWinograd(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        load_(row_loader<float>(p.dtype)),
        pass_{forward_taps(p.h), forward_taps(p.w), 0, {}},
        pieces_(p.h.kernel, p.w.kernel),
        order_(p.h.kernel, p.w.kernel),
        blocks_(unit_blocks(p, pass_)),
        unit_count_(p.batch * blocks_.along_h * blocks_.along_w),
        unit_tiles_(blocks_.rows * blocks_.columns / (MH * MW)),
        unit_inputs_((blocks_.rows / MH + pieces_.along_h - 1) * (blocks_.columns / MW + pieces_.along_w - 1)),
        inputs_(round_up(p.group_in(), L)),
        channels_(round_up(p.group_out(), kPack)),
        round_(units_of_round()),
        wides_((inputs_ + kWide - 1) / kWide),
        parts_(channels_ / kPack * wides_),
        gamma_(p, args.gamma, channels_, static_cast<float>(p.gamma_offset), 1),
        x_(kPoints * inputs_of_point()),
        q_(kPoints * gradients_of_point()),
        grad_weight_(keeps_sums() ? parts_ * part() : 0),
        dots_(round_ * parts_ * kPack),
        means_(gamma_wanted() ? unit_count_ * inputs_ : 0),
        centred_(unit_count_),
        units_(round_),
        sums_(p, blocks_.along_h * blocks_.along_w, channels_, 1) {}

  // Returns whether all is finite; where not, it is to be computed directly.
  bool operator()() {
    for (int64_t g = 0; g < p_.groups && finite_; ++g) {
      tap_sums_.reset();
      for (int64_t first = 0; first < unit_count_; first += round_) {
        const int64_t count = std::min(round_, unit_count_ - first);
        transform_units(g, first, count);
        if (gamma_wanted()) shift_sums(g, first, count);
        multiply_units(g, first, count);
      }
    }
    if (finite_) sums_.finish(p_, args_, gamma_);
    return finite_;
  }

 private:
  static constexpr int L = kLanes<float>, RH = T::H::R, RW = T::W::R, MH = T::H::M, MW = T::W::M, NH = T::H::N,
                       NW = T::W::N, kPoints = T::kPoints;
  static constexpr int64_t kPack = std::lcm(L, kGradRows);  // output channels that lie together in Q
  static constexpr int64_t kBlock = 64 / kPack * kPack;     // output channels that are loaded together
  static constexpr int64_t kWide = kGradVectors * L;        // input channels of a register tile, together in X
  static constexpr int64_t kPartPoint = kPack * kWide + L;  // from one point of a part of the weights to the next

  // Units of the same size whatever the number of threads, so that sums are too; several, so that threads can share.
  static Blocks unit_blocks(const Problem& p, const Pass<float>& pass) {
    constexpr int64_t kLeast = 16, kUnits = 4;  // tiles of a unit, at least; units, where they are not too small
    const int64_t tiles_h = (p.h.out + MH - 1) / MH, tiles_w = (p.w.out + MW - 1) / MW;
    const int64_t tiles = std::clamp(p.batch * tiles_h * tiles_w / kUnits, kLeast, kMostUnitTiles);
    if (tiles_w > tiles) return blocks_of(1, MH, tiles * MW, p.batch, pass.h, pass.w);
    return blocks_of(1, share_evenly(tiles_h, tiles / tiles_w) * MH, tiles_w * MW, p.batch, pass.h, pass.w);
  }

  int64_t units_of_round() const {
    const int64_t unit_bytes = kPoints * (unit_inputs_ * inputs_ + unit_tiles_ * channels_) * sizeof(float);
    return std::min(round_up(share_evenly(unit_count_, std::max<int64_t>(kRoundBytes / unit_bytes, 1)), thread_count()),
                    unit_count_);
  }

  bool gamma_wanted() const { return args_.grad_gamma != nullptr; }
  bool weight_wanted() const { return args_.grad_weight.data != nullptr; }
  bool is_single() const { return p_.batch == 1; }  // sample
  bool sums_wanted() const { return weight_wanted() || (is_single() && gamma_wanted()); }
  bool keeps_sums() const { return round_ < unit_count_ && sums_wanted(); }  // from round to round
  // A part of the weights, kPack x kWide of them (fewer for the last input channels), point by point of every piece.
  int64_t part() const { return pieces_.count() * kPoints * kPartPoint; }
  int64_t inputs_of_point() const { return apart(inputs_ * round_ * unit_inputs_); }
  int64_t gradients_of_point() const { return apart(channels_ * round_ * unit_tiles_); }
  // Where a point's elements of a tile are: input channels from c0 on (kWide of them lie together), and a pack.
  int64_t x_at(int64_t point, int64_t c0, int64_t tile) const {
    return point * inputs_of_point() + c0 * round_ * unit_inputs_ + tile * std::min(kWide, inputs_ - c0);
  }
  int64_t q_at(int64_t point, int64_t k0, int64_t tile) const {
    return point * gradients_of_point() + k0 * round_ * unit_tiles_ + tile * kPack;
  }

  void transform_units(int64_t g, int64_t first, int64_t count) {
    const int64_t strip_size = pass_.h.extent(blocks_.rows) * pass_.w.extent(blocks_.columns) * p_.group_in();
    parallel(count, [&](int64_t begin, int64_t end) {
      Scratch<float> strip(strip_size + L), u(blocks_.rows * blocks_.columns * kBlock);
      strip.zero(strip_size + L);
      for (int64_t i = begin; i < end; ++i) {
        const Extent e = extent_of(blocks_, pass_, p_.batch, first + i);
        units_[i] = {(e.rows + MH - 1) / MH, (e.columns + MW - 1) / MW};
        transform_input(strip, g, e, i, first + i);
        for (int64_t k0 = 0; k0 < channels_; k0 += kBlock) {
          const int64_t channels = std::min(kBlock, channels_ - k0);
          load_gradient(u, e, first + i, g, k0, channels);
          transform_gradient(u, e, i, k0, channels);
        }
      }
    });
  }

  void transform_input(float* strip, int64_t g, const Extent& e, int64_t unit, int64_t number) {
    const int64_t pixel = p_.group_in();
    const Extent whole = whole_tiles<T>(e);
    const int64_t high = whole.rows / MH + pieces_.along_h - 1, wide = whole.columns / MW + pieces_.along_w - 1;
    const int64_t line = pass_.w.extent(whole.columns) * pixel;
    fill_strip(strip, whole, pass_.h, pass_.w, g * pixel, pixel, Plain<float>{args_.input, load_});
    centred_[number] = gamma_wanted() && centre_strip(strip, mean_of(number), whole, pass_.h, pass_.w, pixel);
    int64_t tile = unit * unit_inputs_;
    for (int64_t h = 0; h < high; ++h)
      for (int64_t w = 0; w < wide; ++w, ++tile)
        for (int64_t c = 0; c < pixel; c += L) {
          const int64_t c0 = c / kWide * kWide;
          transform_tile<T>(x_ + x_at(0, c0, tile) + c - c0, inputs_of_point(),
                            strip + h * MH * line + w * MW * pixel + c, line, pixel);
        }
  }

  float* mean_of(int64_t unit) { return means_ + unit * inputs_; }

  // <w, m> of the units that have had their mean taken out.
  void shift_sums(int64_t g, int64_t first, int64_t count) {
    for (int64_t unit = first; unit < first + count; ++unit) {
      if (!centred_[unit]) continue;
      if (!tap_sums_) sum_taps(g);
      tap_sums_->dot(mean_of(unit), 0, p_.group_out(), sums_.shift(0, unit, g));
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

  // u of a unit as [position][channels], zeros in channels that do not exist, and its sums and those of g.
  void load_gradient(float* u, const Extent& e, int64_t unit, int64_t g, int64_t k0, int64_t channels) {
    const int64_t used = std::min(channels, p_.group_out() - k0), k = g * p_.group_out() + k0;
    const bool linear = p_.activation == Activation::none;
    ChannelSums<float> sum_u, sum_g;
    for (int64_t h = e.h0; h < e.h0 + e.rows; ++h, u += e.columns * channels) {
      if (used < channels) std::memset(u, 0, e.columns * channels * sizeof(float));
      load_(u, channels, args_.grad, e.n0, h, e.w0, e.w0 + e.columns, k, used);
      sum_g.add(u, channels, e.columns, used);
      if (linear) continue;
      const uint8_t* bits = args_.bits + ((e.n0 * p_.h.out + h) * p_.w.out + e.w0) * p_.bit_row();
      apply_bits<float>(u, channels, e.columns, used, bits, p_.bit_row(), k, static_cast<float>(p_.lower_slope),
                        nullptr);
      sum_u.add(u, channels, e.columns, used);
    }
    for (int64_t c = 0; c < channels; ++c) {
      sums_.at(UnitSums::g, unit, g)[k0 + c] = sum_g.at(c);
      sums_.at(UnitSums::u, unit, g)[k0 + c] = linear ? sum_g.at(c) : sum_u.at(c);
    }
  }

  void transform_gradient(const float* u, const Extent& e, int64_t unit, int64_t k0, int64_t channels) {
    int64_t tile = unit * unit_tiles_;
    for (int64_t h = 0; h < e.rows; h += MH)
      for (int64_t w = 0; w < e.columns; w += MW, ++tile) {
        const int64_t high = std::min<int64_t>(MH, e.rows - h), wide = std::min<int64_t>(MW, e.columns - w);
        const float* corner = u + (h * e.columns + w) * channels;
        for (int64_t k = 0; k < channels; k += L) {
          Vector<float> gradient[MH][MW], points[NH][NW];
#pragma GCC unroll 4
          for (int i = 0; i < MH; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < MW; ++j)
              gradient[i][j] =
                  i < high && j < wide ? load(corner + (i * e.columns + j) * channels + k) : Vector<float>{};
          transform_2d(
              gradient, points, [](const auto& in, auto& out) { T::H::gradient(in, out); },
              [](const auto& in, auto& out) { T::W::gradient(in, out); });
          const int64_t pack = (k0 + k) / kPack * kPack;
          float* out = q_ + q_at(0, pack, tile) + (k0 + k) % kPack;
#pragma GCC unroll 8
          for (int i = 0; i < NH; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < NW; ++j) store(out + (i * NW + j) * gradients_of_point(), points[i][j]);
        }
      }
  }

  void multiply_units(int64_t g, int64_t first, int64_t count) {
    parallel(parts_, [&](int64_t begin, int64_t end) {
      Scratch<float> weight(this->part()), sums(keeps_sums() ? 0 : this->part());
      for (int64_t part = begin; part < end; ++part)
        with_constant<kGradVectors>(std::min(kWide, inputs_ - part % wides_ * kWide) / L, [&](auto vectors) {
          multiply_part<decltype(vectors)::value>(g, first, count, part, weight,
                                                  keeps_sums() ? grad_weight_ + part * this->part() : sums + 0);
        });
    });
    if (gamma_wanted()) add_dots(g, first, count);
  }

  // A part of V vectors of input channels, for all points and units of the round.
  template <int V>
  void multiply_part(int64_t g, int64_t first, int64_t count, int64_t part, float* weight, float* sums) {
    const int64_t k = part / wides_ * kPack, c0 = part % wides_ * kWide, units = blocks_.along_h * blocks_.along_w;
    const bool dots_wanted = gamma_wanted() && !is_single();
    float ones[kPack];
    std::fill(ones, ones + kPack, 1.0f);
    Scratch<Vector<float>> dots(count * kPack);
    std::fill(dots + 0, dots + count * kPack, Vector<float>{});
    if (dots_wanted) transform_weight<V>(weight, g, k, c0);
    for (int64_t point = 0; point < kPoints; ++point) {
      const float *q = q_ + q_at(point, k, 0), *x = x_ + x_at(point, c0, 0);
      for (int64_t unit = 0; unit < count; ++unit) {
        const float* gamma = is_single() ? ones : gamma_.at((first + unit) / units, g) + k;
        const auto [high, wide] = units_[unit];
        const int64_t line = wide + pieces_.along_w - 1;
        const bool one_line = line == wide;
        for (int64_t i = 0; i < pieces_.count(); ++i) {
          const int64_t tile = unit * unit_inputs_ + i / pieces_.along_w * line + i % pieces_.along_w;
          const int64_t at = (i * kPoints + point) * kPartPoint;
          for (int64_t m = 0; m < std::min(kPack, p_.group_out() - k); m += kGradRows)
            UnitTile<float, V>{q + unit * unit_tiles_ * kPack + m,
                               x + tile * V * L,
                               kPack,
                               one_line ? 1 : high,
                               one_line ? high * wide : wide,
                               line * V * L,
                               V * L,
                               weight + at + m * V * L,
                               sums_wanted() ? sums + at + m * V * L : nullptr,
                               V * L,
                               V * L,
                               gamma + m,
                               dots_wanted ? dots + unit * kPack + m : nullptr,
                               first + unit == 0,
                               p_.dtype == DType::f32 ? kChainTiles : kMostUnitTiles}();
        }
      }
    }
    if (first + count == unit_count_ && sums_wanted())
      with_storage<float>(p_.dtype, [&](auto element) { finish_part<decltype(element), V>(g, k, c0, sums, dots); });
    for (int64_t i = 0; i < count * kPack; ++i)
      dots_[(part % wides_ * round_ + i / kPack) * channels_ + k + i % kPack] = sum_lanes<float>(dots[i]);
  }

  // W of an output channel and so many input channels, [tap][input channel]
  void load_weight(float* taps, int64_t sources, int64_t g, int64_t k, int64_t c0) const {
    with_storage<float>(p_.dtype, [&](auto element) {
      order_.template load<decltype(element)>(taps, sources, args_.weight, g * p_.group_out() + k, c0,
                                              std::min(sources, p_.group_in() - c0));
    });
  }

  // G W G^T of a part, [piece][point][output channel][input channel]; made anew in each round, a small part of its
  // products
  template <int V>
  void transform_weight(float* weight, int64_t g, int64_t k0, int64_t c0) const {
    const int64_t line = p_.w.kernel * V * L, size = p_.h.kernel * line;
    Scratch<float> taps(size);
    taps.zero(size);
    for (int64_t k = 0; k < kPack; ++k, weight += V * L) {
      if (k0 + k < p_.group_out())
        load_weight(taps, V * L, g, k0 + k, c0);
      else
        taps.zero(size);
      for (int64_t i = 0; i < pieces_.count(); ++i) {
        const auto piece = pieces_.at(i);
        for (int64_t c = 0; c < V * L; c += L)
          transform_filter<T, double>(weight + i * kPoints * kPartPoint + c, kPartPoint,
                                      taps + piece.h * line + piece.w * V * L + c, line, V * L, piece.rows,
                                      piece.columns);
      }
    }
  }

  // What dW of a channel lacks at every tap: the sum over units of gamma * m * sum_p u, for input channels from c0 on.
  template <int LANES>
  void add_means(double (&total)[LANES], int64_t g, int64_t k, int64_t c0) {
    const int64_t units = blocks_.along_h * blocks_.along_w;
    for (int64_t unit = 0; unit < unit_count_; ++unit) {
      if (!centred_[unit]) continue;
      const double factor = gamma_.at(unit / units, g)[k] * sums_.at(UnitSums::u, unit, g)[k];
      const float* mean = mean_of(unit) + c0;
      for (int64_t c = 0; c < std::min<int64_t>(LANES, p_.group_in() - c0); ++c) total[c] += factor * mean[c];
    }
  }

  // G^T (the sum) G of a part: dW, or of a single sample U, which gives <W, U> (into `dots`) and dW.
  template <class E, int V>
  void finish_part(int64_t g, int64_t k0, int64_t c0, const float* sums, Vector<float>* dots) {
    const int64_t sources = std::min<int64_t>(V * L, p_.group_in() - c0);
    const bool dots_wanted = gamma_wanted() && is_single();
    const int64_t size = p_.h.kernel * p_.w.kernel * V * L;
    Scratch<float> weight(size), grad_weight(size);
    weight.zero(size);
    Vector<float> zero_or_nan{};
    for (int64_t k = 0; k < std::min(kPack, p_.group_out() - k0); ++k) {
      const Vector<float> factor = splat(is_single() ? gamma_.at(0, g)[k0 + k] : 1);
      if (dots_wanted) load_weight(weight, V * L, g, k0 + k, c0);
      double taken_out[V * L] = {};
      add_means(taken_out, g, k0 + k, c0);
      for (int64_t i = 0; i < pieces_.count(); ++i) {
        const auto piece = pieces_.at(i);
        for (int64_t c = 0; c < V * L; c += L) {
          Vector<float> points[NH][NW], taps[RH][RW], mean{};
          for (int lane = 0; lane < L; ++lane) mean[lane] = static_cast<float>(taken_out[c + lane]);
          for (int h = 0; h < NH; ++h)
            for (int w = 0; w < NW; ++w)
              points[h][w] = load(sums + ((i * NH + h) * NW + w) * kPartPoint + k * V * L + c);
          transform_2d(
              points, taps, [](const auto& in, auto& out) { T::H::filter_gradient(in, out); },
              [](const auto& in, auto& out) { T::W::filter_gradient(in, out); });
          for (int h = 0; h < RH; ++h)
            for (int w = 0; w < RW; ++w) {
              if (h >= piece.rows || w >= piece.columns) continue;
              const int64_t tap = ((piece.h + h) * p_.w.kernel + piece.w + w) * V * L + c;
              zero_or_nan += 0 * taps[h][w];
              if (dots_wanted) dots[k] += load(weight + tap) * taps[h][w];
              store(grad_weight + tap, factor * taps[h][w] + mean);
            }
        }
      }
      if (weight_wanted())
        order_.template store<E>(args_.grad_weight, g * p_.group_out() + k0 + k, grad_weight, V * L, c0, sources);
    }
    if (!is_zero<float>(zero_or_nan)) finite_ = false;
  }

  // <W, U> of the units from those of the parts.
  void add_dots(int64_t g, int64_t first, int64_t count) {
    for (int64_t unit = 0; unit < count; ++unit)
      for (int64_t k = 0; k < p_.group_out(); ++k) {
        double sum = 0;
        for (int64_t part = 0; part < wides_; ++part) sum += dots_[(part * round_ + unit) * channels_ + k];
        if (!std::isfinite(sum)) finite_ = false;
        sums_.product(0, first + unit, g)[k] = sum;
      }
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const LoadRow<float> load_;
  const Pass<float> pass_;
  const Pieces<T> pieces_;
  const WeightOrder<float> order_;
  const Blocks blocks_;
  const int64_t unit_count_, unit_tiles_, unit_inputs_, inputs_, channels_, round_, wides_, parts_;
  const Factors<float> gamma_;
  Scratch<float> x_, q_, grad_weight_;
  Scratch<double> dots_;
  Scratch<float> means_;                    // of each unit's input channels,
  std::vector<char> centred_;               // and whether they have been taken out
  std::optional<TapSums<float>> tap_sums_;  // of the group, once a unit asks for them
  struct Unit {
    int64_t high, wide;  // tiles
  };
  std::vector<Unit> units_;  // of a round
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
