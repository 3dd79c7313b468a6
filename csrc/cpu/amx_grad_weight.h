// dW by tiles of AMX, where dgamma is not asked for: for each tap the matrix product of output channels by positions
// and positions by source channels.
//
// Positions go in units, blocks of some rows of one sample or of some whole samples, which are numbered on through the
// padding between rows, so that a tap is a shift by so many positions. The gradient is zero in the padding, and has
// each channel's positions side by side. The input has positions in pairs, twice: those that begin at even numbers, for
// taps of even shifts, and those that begin at odd ones.
//
// Units are shared out to a few splits, each with a dW of its own, and go in rounds. First a round's units are turned
// into limbs, then they are multiplied. Threads share the splits, and within a split first the units, then the
// weight's elements; so what a thread reads is mostly what it has made itself. The splits are added up in their order.
//
// The gradient's own sums, db, are made as it is turned.
#pragma once

#include <atomic>

#include "amx_tile.h"
#include "modulated.h"
#include "patches.h"
#include "weight_order.h"

namespace film::FILM_ISA {

constexpr int64_t kPairSide = 2 * kTileSide;  // channels that tiles take together

// Writes the limbs of `count` numbers side by side.
template <int LIMBS>
inline void put_limbs_in_line(uint16_t* dst, int64_t plane, const float* src, int64_t count) {
  for (int64_t i = 0; i < count; i += kTileSide) {
    Vector<float> x = load_part(src + i, count - i);
    const auto mask = static_cast<__mmask16>(count - i >= kTileSide ? 0xffff : (1u << (count - i)) - 1);
#pragma GCC unroll 3
    for (int limb = 0; limb < LIMBS; ++limb) {
      const __m512i upper = next_limb(x, limb + 1 == LIMBS);
      _mm256_mask_storeu_epi16(dst + limb * plane + i, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(upper, 16)));
    }
  }
}

// LX limbs of the input, and LU of the gradient, which gamma has been multiplied into.
template <class Engine, int LX, int LU>
class GradWeightAmx {
 public:
  GradWeightAmx(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        load_(row_loader<float>(p.dtype)),
        pass_{forward_taps(p.h), forward_taps(p.w), 0, {}},
        taps_(p.h.kernel * p.w.kernel),
        outputs_((p.group_out() + kPairSide - 1) / kPairSide),
        sources_((p.group_in() + kPairSide - 1) / kPairSide),
        units_(cut(p, pass_)),
        at_(units_, pass_, outputs_, sources_),
        splits_(std::clamp<int64_t>(std::min({p.positions() / kSplitPositions, units_.blocks(),
                                              kSplitBytes / (split_size() * static_cast<int64_t>(sizeof(float)))}),
                                    1, kMostSplits)),
        split_units_((units_.blocks() + splits_ - 1) / splits_),
        round_(std::clamp<int64_t>(kRoundBytes / (at_.size() * 2 * splits_), 1, split_units_)),
        chain_(std::clamp<int64_t>(kNearBytes / at_.pair_bytes(), 1, round_)),
        gamma_(p, args.gamma, p.group_out(), static_cast<float>(p.gamma_offset), 1),
        limbs_(splits_ * round_ * at_.size()),
        sums_(splits_ * split_size()),
        bias_sums_(bias_wanted() ? units_.blocks() * p.group_out() : 0) {}

  // Whether padding and taps that are far apart take no more than there is of positions.
  static bool suits(const Problem& p) {
    constexpr int64_t kMostBytes = 32 << 20;  // of a unit
    const Pass<float> pass{forward_taps(p.h), forward_taps(p.w), 0, {}};
    const Blocks units = cut(p, pass);
    const Layout at(units, pass, 1, 1);
    const int64_t pairs = std::max(p.group_in(), p.group_out()) / kPairSide + 1;
    return at.columns <= 2 * units.columns && at.size() * pairs * static_cast<int64_t>(sizeof(uint16_t)) <= kMostBytes;
  }

  // Returns whether all is finite. Where it is not, everything is to be computed by others.
  bool operator()() {
    for (int64_t g = 0; g < p_.groups && finite_; ++g) {
      for (int64_t first = 0; first < split_units_; first += round_) {
        fill(g, first);
        parallel(splits_ * blocks(), [&](int64_t begin, int64_t end) { multiply(first, begin, end); });
      }
      with_storage<float>(p_.dtype, [&](auto element) {
        store<decltype(element)>(g);
        if (bias_wanted()) store_bias<decltype(element)>(g);
      });
    }
    return finite_;
  }

 private:
  static constexpr int64_t kBlock = kPairSide * kPairSide;  // elements of the weight that are summed together
  static constexpr int64_t kRoundBytes = 16 << 20, kNearBytes = 1 << 20;
  static constexpr int64_t kSplitPositions = 512, kMostSplits = 4, kSplitBytes = 64 << 20;

  // Where a unit's limbs are: of the gradient [limb][channel][position], then of the input [even and odd][pair of
  // tiles][limb][tile][pair of positions][channel and position]. Smaller units leave the end of it empty.
  struct Layout {
    Layout(const Blocks& units, const Pass<float>& pass, int64_t outputs, int64_t sources)
        : columns(pass.w.extent(units.columns)),
          sample(pass.h.extent(units.rows) * columns),
          // An odd number of lines, so that channels do not fall into the same cache sets.
          pitch((steps(units.samples, units.rows) | 1) * kTileProducts),
          plane(outputs * kPairSide * pitch),
          pairs(steps(units.samples, units.rows) * kTileSide + shift(pass.h.extent(1) - 1, pass.w.extent(1) - 1) / 2),
          tile(pairs * kTileProducts),
          copy(sources * 2 * LX * tile) {}
    int64_t steps(int64_t samples, int64_t rows) const {
      return ((samples - 1) * sample + rows * columns + kTileProducts - 1) / kTileProducts;
    }
    int64_t shift(int64_t rows, int64_t more) const { return rows * columns + more; }
    int64_t size() const { return LU * plane + 2 * copy; }
    // Of what is multiplied together: a pair of tiles of either.
    int64_t pair_bytes() const { return (LU * kPairSide * pitch + 4 * LX * tile) * 2; }
    int64_t columns, sample, pitch, plane, pairs, tile, copy;
  };

  // Units do not depend on the number of threads, so that neither do sums.
  static Blocks cut(const Problem& p, const Pass<float>& pass) {
    constexpr int64_t kLeast = 256, kMost = 1024, kUnits = 4;
    const int64_t positions = std::clamp(p.positions() / kUnits, kLeast, kMost);
    const int64_t columns = share_evenly(p.w.out, positions);
    const int64_t rows = columns == p.w.out ? share_evenly(p.h.out, std::max<int64_t>(positions / columns, 1)) : 1;
    // Samples go together where the padding between them takes less than steps that are not full.
    const int64_t row = pass.w.extent(columns), sample = pass.h.extent(rows) * row;
    const bool together = rows == p.h.out && columns == p.w.out && sample < round_up(rows * row, kTileProducts);
    const int64_t samples = together ? share_evenly(p.batch, std::max<int64_t>(positions / sample, 1)) : 1;
    return blocks_of(samples, rows, columns, p.batch, pass.h, pass.w);
  }

  bool bias_wanted() const { return args_.grad_bias != nullptr; }
  int64_t blocks() const { return outputs_ * sources_ * taps_; }
  int64_t split_size() const { return blocks() * kBlock; }

  // How many units a split has in the round that begins with its unit number `first`.
  int64_t units_in(int64_t split, int64_t first) const {
    const int64_t left = units_.blocks() - split * split_units_ - first;
    return std::clamp<int64_t>(left, 0, std::min(round_, split_units_ - first));
  }
  Extent extent(int64_t split, int64_t unit) const {
    return extent_of(units_, pass_, p_.batch, split * split_units_ + unit);
  }

  // Turns a round's units into limbs: the gradient of each and, pair of tiles by pair, the input.
  void fill(int64_t g, int64_t first) {
    const int64_t parts = 1 + sources_;
    parallel(splits_ * round_ * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t place = i / parts, split = place / round_, unit = place % round_;
        if (unit >= units_in(split, first)) continue;
        const Extent e = extent(split, first + unit);
        uint16_t* dst = limbs_ + place * at_.size();
        if (i % parts == 0)
          fill_gradient(g, e, dst, bias_sums_ + (split * split_units_ + first + unit) * p_.group_out());
        else
          fill_input(g, i % parts - 1, e, dst + LU * at_.plane);
      }
    });
  }

  // Its sums over the unit's positions go to `sums`, where db is wanted.
  void fill_gradient(int64_t g, const Extent& e, uint16_t* dst, double* sums) const {
    const Modulated<float> source{p_, args_.grad, args_.bits, &gamma_, load_};
    const ChannelRange channels{g * p_.group_out(), p_.group_out()};
    constexpr int64_t kColumns = 64;  // at a time
    Scratch<float> run(kColumns * channels.count), turned(kColumns * channels.count);
    std::memset(dst, 0, LU * at_.plane * sizeof(uint16_t));
    if (bias_wanted()) std::fill_n(sums, channels.count, 0.0);
    for (int64_t row = 0; row < e.samples * e.rows; ++row)
      for (int64_t c = 0; c < e.columns; c += kColumns) {
        const int64_t n = row / e.rows, r = row % e.rows, count = std::min(kColumns, e.columns - c);
        source(run, {e.n0 + n, e.h0 + r, e.w0 + c, count}, channels);
        if (bias_wanted()) add_rows(sums, run, count, channels.count);
        turn<float>(static_cast<float*>(turned), kColumns, static_cast<const float*>(run), channels.count, count,
                    channels.count);
        for (int64_t k = 0; k < channels.count; ++k)
          put_limbs_in_line<LU>(dst + k * at_.pitch + n * at_.sample + r * at_.columns + c, at_.plane,
                                turned + k * kColumns, count);
      }
  }

  static void add_rows(double* __restrict sums, const float* __restrict rows, int64_t count, int64_t channels) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < channels; ++c) sums[c] += rows[i * channels + c];
  }

  void fill_input(int64_t g, int64_t pair, Extent e, uint16_t* dst) const {
    const ChannelRange channels{g * p_.group_in() + pair * kPairSide,
                                std::min(kPairSide, p_.group_in() - pair * kPairSide)};
    e.columns = units_.columns;  // with padding behind the last one
    const int64_t filled = e.samples * pass_.h.extent(e.rows) * at_.columns, positions = 2 * at_.pairs + 1;
    Scratch<float> strip(std::max(filled, positions) * channels.count);
    fill_strip(static_cast<float*>(strip), e, pass_.h, pass_.w, channels, Plain<float>{args_.input, load_});
    if (filled < positions)
      std::memset(strip + filled * channels.count, 0, (positions - filled) * channels.count * sizeof(float));
    for (int64_t odd = 0; odd < 2; ++odd)
      for (int64_t tile = 0; tile < 2; ++tile) {
        const int64_t count = channels.count - tile * kTileSide;
        uint16_t* at_tile = dst + odd * at_.copy + (pair * LX * 2 + tile) * at_.tile;
        for (int64_t i = 0; i < at_.pairs; ++i) {
          const float* src = strip + (2 * i + odd) * channels.count + tile * kTileSide;
          put_limbs<LX>(at_tile + i * kTileProducts, 2 * at_.tile, count > 0 ? load_part(src, count) : Vector<float>{},
                        count > 0 ? load_part(src + channels.count, count) : Vector<float>{});
        }
      }
  }

  // Adds a round's products to some of the sums, which are numbered (split, pair of output tiles, of source tiles,
  // tap).
  void multiply(int64_t first, int64_t begin, int64_t end) {
    Scratch<float> block(kBlock);
    std::vector<TileStep> steps;
    const EngineInUse<Engine> in_use;
    for (int64_t number = begin; number < end;) {
      const int64_t last = std::min(end, (number / taps_ + 1) * taps_), split = number / blocks();
      const int64_t pair = number / taps_ % (outputs_ * sources_), count = units_in(split, first);
      for (int64_t from = 0; from < count; from += chain_) {
        steps.clear();
        for (int64_t unit = from; unit < std::min(from + chain_, count); ++unit) {
          const Extent e = extent(split, first + unit);
          const int64_t place = (split * round_ + unit) * at_.size();
          for (int64_t step = 0; step < at_.steps(e.samples, e.rows); ++step)
            steps.push_back({place + step * kTileProducts, place + step * kTileElements});
        }
        for (int64_t sum = number; sum < last; ++sum) {
          multiply_units(pair, sum % taps_ / p_.w.kernel, sum % p_.w.kernel, steps, block);
          add_block(sums_ + sum * kBlock, block, /*fresh=*/first + from == 0);
        }
      }
      number = last;
    }
  }

  static void add_block(float* total, const float* block, bool fresh) {
    for (int64_t j = 0; j < kBlock; j += kLanes<float>)
      film::FILM_ISA::store(total + j, fresh ? load(block + j) : load(total + j) + load(block + j));
  }

  // block[output channel][source channel] = the products of a pair of tiles of either at one tap.
  void multiply_units(int64_t pair, int64_t kh, int64_t kw, const std::vector<TileStep>& steps, float* block) const {
    const int64_t shift = at_.shift(pass_.h.offset[kh] - pass_.h.low(), pass_.w.offset[kw] - pass_.w.low());
    const uint16_t* gradient = limbs_ + pair / sources_ * kPairSide * at_.pitch;
    const uint16_t* input = limbs_ + LU * at_.plane + shift % 2 * at_.copy + pair % sources_ * 2 * LX * at_.tile +
                            shift / 2 * kTileProducts;
    AmxTile<Engine, 2, 2, LU, LX>::multiply({{gradient, gradient + kTileSide * at_.pitch}, at_.plane, at_.pitch},
                                            {input, 2 * at_.tile, at_.tile}, steps.data(),
                                            static_cast<int64_t>(steps.size()), block, {});
  }

  // Stores dW of a group.
  template <class T>
  void store(int64_t g) {
    const WeightOrder<float> order(p_.h.kernel, p_.w.kernel);
    parallel(outputs_ * sources_, [&](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair) {
        float* sums = sums_ + pair * taps_ * kBlock;  // [tap][output channel][source channel]
        for (int64_t split = 1; split * split_units_ < units_.blocks(); ++split)
          for (int64_t tap = 0; tap < taps_; ++tap)
            add_block(sums + tap * kBlock, sums + split * split_size() + tap * kBlock, /*fresh=*/false);
        if (!all_finite(sums, taps_ * kBlock)) finite_ = false;
        const int64_t k0 = pair / sources_ * kPairSide, c0 = pair % sources_ * kPairSide;
        for (int64_t k = 0; k < std::min(kPairSide, p_.group_out() - k0); ++k)
          order.template store<T>(args_.grad_weight, g * p_.group_out() + k0 + k, sums + k * kPairSide, kBlock, c0,
                                  std::min(kPairSide, p_.group_in() - c0));
      }
    });
  }

  // db of a group: the sum of the units, in their order.
  template <class T>
  void store_bias(int64_t g) const {
    T* grad_bias = static_cast<T*>(args_.grad_bias) + g * p_.group_out();
    for (int64_t k = 0; k < p_.group_out(); ++k) {
      double total = 0;
      for (int64_t unit = 0; unit < units_.blocks(); ++unit) total += bias_sums_[unit * p_.group_out() + k];
      grad_bias[k] = narrow<T>(static_cast<float>(total));
    }
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const LoadRow<float> load_;
  const Pass<float> pass_;
  const int64_t taps_, outputs_, sources_;  // the last two in pairs of tiles, of a group
  const Blocks units_;
  const Layout at_;
  const int64_t splits_, split_units_;  // how many splits, and the units of one, at most
  const int64_t round_, chain_;         // units of a split's round, and of those that are summed within the tiles
  const Factors<float> gamma_;
  Scratch<uint16_t> limbs_;
  Scratch<float> sums_;
  Scratch<double> bias_sums_;  // of each unit
  std::atomic<bool> finite_{true};
};

}  // namespace film::FILM_ISA
