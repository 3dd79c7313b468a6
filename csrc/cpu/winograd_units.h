// The units of the weight gradient at Winograd's points, as grad_weight_winograd.cpp multiplies them: X = B^T x B of
// the input's tiles and Q = A u A^T of the gradient's, for a round of units at a time.
//
// The weights of a group are cut into parts, each a range of output channels by a range of input channels, and a part
// is what a thread multiplies at a time. So at each point the channels of one range stand together:
//
//     X   point 0                                              point 1
//         | input range 0             | input range 1 | ...    | ...
//         | unit 0            | unit 1 ..                      every unit has room for as many tiles as the largest
//         | tile 0 | tile 1 ..                                 a tile has kInputs channels (fewer in the last range)
//
//     Q   the same with the ranges of output channels, and kOutputs channels in each
//
// A large kernel is cut into pieces, and piece (i, j) multiplies the gradient's tile (h, w) with the input's tile
// (h + i, w + j). So a unit has more tiles of the input than of the gradient, and they stand row by row.
#pragma once

#include <numeric>

#include "centre.h"
#include "ranges.h"
#include "unit_sums.h"
#include "winograd.h"

namespace film::FILM_ISA {

// Units [first, first + count), which are transformed and then multiplied together.
struct Round {
  int64_t first, count;
};

// A part of the weights of group g: UnitLayout::kOutputs output channels from k on, and `vectors` vectors of input
// channels from c on, counted within the group. Channels past the group's last one are zeros.
struct WeightPart {
  int64_t g, number, k, c;
  int64_t input_range;
  int vectors;
};

// How many units, rounds, ranges and parts there are, and where X and Q have their elements.
template <class T>
struct UnitLayout {
  static constexpr int64_t kOutputs = std::lcm(kLanes<float>, kGradRows);  // output channels of a range
  static constexpr int64_t kInputs = kGradVectors * kLanes<float>;         // input channels of a range, at most
  static constexpr int64_t kMostTiles = 64;                                // of a unit

  UnitLayout(const Problem& p, const Pass<float>& pass, const Pieces<T>& pieces) : blocks(blocks_of_units(p, pass)) {
    constexpr int64_t kRoundBytes = 4 << 20;  // of X and Q together
    const int64_t high = blocks.rows / T::H::M, wide = blocks.columns / T::W::M;
    sample_units = blocks.along_h * blocks.along_w;
    units = p.batch * sample_units;
    gradient_tiles = high * wide;
    input_tiles = (high + pieces.along_h - 1) * (wide + pieces.along_w - 1);
    inputs = round_up(p.group_in(), kLanes<float>);
    outputs = round_up(p.group_out(), kOutputs);
    input_ranges = (inputs + kInputs - 1) / kInputs;
    const int64_t unit_bytes = T::kPoints * (input_tiles * inputs + gradient_tiles * outputs) * sizeof(float);
    const int64_t fitting = std::max<int64_t>(kRoundBytes / unit_bytes, 1);
    round_units = std::min(round_up(share_evenly(units, fitting), thread_count()), units);
  }

  // Elements from one point to the next.
  int64_t x_point() const { return apart(inputs * round_units * input_tiles); }
  int64_t q_point() const { return apart(outputs * round_units * gradient_tiles); }
  // Where a tile of a unit of the round has the range of channels from c or k on, at the first point.
  int64_t x_at(int64_t c, int64_t unit, int64_t tile) const {
    return c * round_units * input_tiles + (unit * input_tiles + tile) * std::min(kInputs, inputs - c);
  }
  int64_t q_at(int64_t k, int64_t unit, int64_t tile) const {
    return k * round_units * gradient_tiles + (unit * gradient_tiles + tile) * kOutputs;
  }

  int64_t parts() const { return outputs / kOutputs * input_ranges; }
  WeightPart part(int64_t g, int64_t number) const {
    const int64_t range = number % input_ranges, c = range * kInputs;
    const auto vectors = static_cast<int>(std::min(kInputs, inputs - c) / kLanes<float>);
    return {g, number, number / input_ranges * kOutputs, c, range, vectors};
  }

  Blocks blocks;                        // the units, as blocks of positions of one sample
  int64_t sample_units, units;          // units of one sample, and of all
  int64_t gradient_tiles, input_tiles;  // of one unit, at most
  int64_t inputs, outputs;              // channels of a group, rounded up to vectors and to ranges
  int64_t input_ranges;
  int64_t round_units;  // units of one round, at most

 private:
  // The size of a unit does not depend on the number of threads, so that neither do the sums over it. There are several
  // units where they do not get too small, for threads to share.
  static Blocks blocks_of_units(const Problem& p, const Pass<float>& pass) {
    constexpr int64_t kLeastTiles = 16, kUnits = 4;
    constexpr int64_t MH = T::H::M, MW = T::W::M;
    const int64_t tiles_h = (p.h.out + MH - 1) / MH, tiles_w = (p.w.out + MW - 1) / MW;
    const int64_t tiles = std::clamp(p.batch * tiles_h * tiles_w / kUnits, kLeastTiles, kMostTiles);
    if (tiles_w > tiles) return blocks_of(1, MH, tiles * MW, p.batch, pass.h, pass.w);
    return blocks_of(1, share_evenly(tiles_h, tiles / tiles_w) * MH, tiles_w * MW, p.batch, pass.h, pass.w);
  }
};

// X and Q of one round of units after another, and the means of their inputs.
template <class T>
class TransformedUnits {
 public:
  using Layout = UnitLayout<T>;
  // The gradient's tiles in one unit.
  struct TileCounts {
    int64_t high, wide;
  };

  TransformedUnits(const Problem& p, const GradWeightArgs& args)
      : layout(p, pass(p), Pieces<T>(p.h.kernel, p.w.kernel)),
        p_(p),
        args_(args),
        load_(row_loader<float>(p.dtype)),
        pass_(pass(p)),
        pieces_(p.h.kernel, p.w.kernel),
        centre_(args.grad_gamma != nullptr),
        x_(T::kPoints * layout.x_point()),
        q_(T::kPoints * layout.q_point()),
        tiles_(layout.round_units),
        means_(centre_ ? layout.units * layout.inputs : 0),
        centred_(layout.units) {}

  // Transforms the units of a round, of the channels of group g, and sets their sums of u and g.
  void transform(int64_t g, const Round& round, UnitSums& sums) {
    const int64_t strip_size =
        pass_.h.extent(layout.blocks.rows) * pass_.w.extent(layout.blocks.columns) * p_.group_in();
    parallel(round.count, [&](int64_t begin, int64_t end) {
      Scratch<float> strip(strip_size + L), u(layout.blocks.rows * layout.blocks.columns * kLoadedOutputs);
      strip.zero(strip_size + L);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = round.first + i;
        const Extent e = extent_of(layout.blocks, pass_, p_.batch, unit);
        tiles_[i] = {(e.rows + MH - 1) / MH, (e.columns + MW - 1) / MW};
        load_input(strip, g, e, unit);
        transform_input(strip, e, i);
        for (int64_t k = 0; k < layout.outputs; k += kLoadedOutputs) {
          const ChannelRange channels{k, std::min(kLoadedOutputs, layout.outputs - k)};
          load_gradient(u, g, e, unit, channels, sums);
          transform_gradient(u, e, i, channels);
        }
      }
    });
  }

  // Of unit number i of the round: its tiles, and where X and Q have them at a point, for a part of the weights.
  TileCounts tiles(int64_t i) const { return tiles_[i]; }
  const float* x(int64_t point, const WeightPart& part, int64_t i) const {
    return x_ + point * layout.x_point() + layout.x_at(part.c, i, 0);
  }
  const float* q(int64_t point, const WeightPart& part, int64_t i) const {
    return q_ + point * layout.q_point() + layout.q_at(part.k, i, 0);
  }

  // The means of a unit's input channels, and whether they have been taken out of X (centre.h).
  bool is_centred(int64_t unit) const { return centred_[unit]; }
  const float* means(int64_t unit) const { return means_ + unit * layout.inputs; }

  const Layout layout;

 private:
  static constexpr int L = kLanes<float>, MH = T::H::M, MW = T::W::M;
  static constexpr int64_t kLoadedOutputs = 64 / Layout::kOutputs * Layout::kOutputs;  // loaded together

  static Pass<float> pass(const Problem& p) { return {forward_taps(p.h), forward_taps(p.w), 0, {}}; }

  // The input of a unit, without its means where dgamma's digits need that.
  void load_input(float* strip, int64_t g, const Extent& e, int64_t unit) {
    const int64_t pixel = p_.group_in();
    const Extent whole = whole_tiles<T>(e);
    fill_strip(strip, whole, pass_.h, pass_.w, {g * pixel, pixel}, Plain<float>{args_.input, load_});
    float* means = means_ + unit * layout.inputs;
    centred_[unit] = centre_ && centre_strip(strip, means, whole, pass_.h, pass_.w, pixel);
  }

  // X = B^T x B of a unit's tiles.
  void transform_input(const float* strip, const Extent& e, int64_t i) {
    const int64_t pixel = p_.group_in(), line = pass_.w.extent(whole_tiles<T>(e).columns) * pixel;
    const int64_t high = tiles_[i].high + pieces_.along_h - 1, wide = tiles_[i].wide + pieces_.along_w - 1;
    for (int64_t h = 0; h < high; ++h)
      for (int64_t w = 0; w < wide; ++w)
        for (int64_t c = 0; c < pixel; c += L) {
          const int64_t range = c / Layout::kInputs * Layout::kInputs;
          float* x = x_ + layout.x_at(range, i, h * wide + w) + c - range;
          const float* corner = strip + h * MH * T::H::STRIDE * line + w * MW * T::W::STRIDE * pixel;
          transform_tile<T>({x, layout.x_point()}, corner + c, {line, pixel});
        }
  }

  // u of a unit as [position][channel], zeros in channels that do not exist; and the unit's sums of u and g.
  void load_gradient(float* u, int64_t g, const Extent& e, int64_t unit, const ChannelRange& channels, UnitSums& sums) {
    const int64_t used = std::min(channels.count, p_.group_out() - channels.first);
    const int64_t k = g * p_.group_out() + channels.first;
    const bool linear = p_.activation == Activation::none;
    ChannelSums<float> sum_u, sum_g;
    for (int64_t h = e.h0; h < e.h0 + e.rows; ++h, u += e.columns * channels.count) {
      if (used < channels.count) std::memset(u, 0, e.columns * channels.count * sizeof(float));
      load_(u, channels.count, args_.grad, {e.n0, h, e.w0, e.columns}, {k, used});
      sum_g.add(u, channels.count, e.columns, used);
      if (linear) continue;
      const uint8_t* bits = args_.bits + ((e.n0 * p_.h.out + h) * p_.w.out + e.w0) * p_.bit_row();
      apply_bits<float>(u, channels.count, e.columns, used, bits, p_.bit_row(), k, static_cast<float>(p_.lower_slope),
                        nullptr);
      sum_u.add(u, channels.count, e.columns, used);
    }
    double *all_g = sums.at(UnitSums::g, unit, g) + channels.first,
           *all_u = sums.at(UnitSums::u, unit, g) + channels.first;
    for (int64_t c = 0; c < channels.count; ++c) {
      all_g[c] = sum_g.at(c);
      all_u[c] = linear ? sum_g.at(c) : sum_u.at(c);
    }
  }

  // Q = A u A^T of a unit's tiles. Where a tile reaches over the edge, the gradient's elements there are zeros.
  void transform_gradient(const float* u, const Extent& e, int64_t i, const ChannelRange& range) {
    constexpr int NH = T::H::N, NW = T::W::N;
    const int64_t k0 = range.first, channels = range.count;
    int64_t tile = i * layout.gradient_tiles;
    for (int64_t h = 0; h < e.rows; h += MH)
      for (int64_t w = 0; w < e.columns; w += MW, ++tile) {
        const int64_t high = std::min<int64_t>(MH, e.rows - h), wide = std::min<int64_t>(MW, e.columns - w);
        const float* corner = u + (h * e.columns + w) * channels;
        for (int64_t k = 0; k < channels; k += L) {
          Vector<float> gradient[MH][MW], points[NH][NW];
#pragma GCC unroll 4
          for (int row = 0; row < MH; ++row)
#pragma GCC unroll 4
            for (int column = 0; column < MW; ++column)
              gradient[row][column] = row < high && column < wide
                                          ? load(corner + (row * e.columns + column) * channels + k)
                                          : Vector<float>{};
          transform_2d(
              gradient, points, [](const auto& in, auto& out) { T::H::gradient(in, out); },
              [](const auto& in, auto& out) { T::W::gradient(in, out); });
          const int64_t first = (k0 + k) / Layout::kOutputs * Layout::kOutputs;
          float* out = q_ + layout.q_at(first, 0, tile) + (k0 + k) % Layout::kOutputs;
#pragma GCC unroll 8
          for (int row = 0; row < NH; ++row)
#pragma GCC unroll 8
            for (int column = 0; column < NW; ++column)
              store(out + (row * NW + column) * layout.q_point(), points[row][column]);
        }
      }
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const LoadRow<float> load_;
  const Pass<float> pass_;
  const Pieces<T> pieces_;
  const bool centre_;
  Scratch<float> x_, q_;
  std::vector<TileCounts> tiles_;
  Scratch<float> means_;
  std::vector<char> centred_;
};

}  // namespace film::FILM_ISA
