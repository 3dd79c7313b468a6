// grad_weight.cpp's sums by Winograd's filtering (winograd.h): with X = B^T x B and Q = A u A^T of every tile, each
// point is a matrix product over a unit's tiles of its own, and U = G^T (sum over tiles of Q * X) G. Both uses of U are
// made before G: dgamma = <G W G^T, sum of Q * X>, and dW's sum over units is transformed once at the end.
//
// Units go in rounds: first all their tiles are transformed, units shared out among threads, then multiplied, output
// channels and points shared out. Each sum belongs to one task and takes the units in order.
#include <cmath>
#include <numeric>

#include "unit_sums.h"
#include "unit_tile.h"
#include "winograd.h"

namespace film::FILM_ISA {
namespace {

constexpr int64_t kUnitTiles = 64;  // of one unit, at most
constexpr int64_t kRoundBytes = 4 << 20;

template <class T>
class GradWeightWinograd {
 public:
  GradWeightWinograd(const Problem& p, const GradWeightArgs& args)
      : p_(p),
        args_(args),
        load_(row_loader<float>(p.dtype)),
        pass_{forward_taps(p.h), forward_taps(p.w), R * R * p.group_out(), {}},
        blocks_(unit_blocks(p, pass_)),
        unit_count_(p.batch * blocks_.along_h * blocks_.along_w),
        unit_tiles_(blocks_.rows * blocks_.columns / (MH * MW)),
        inputs_(round_up(p.group_in(), L)),
        channels_(round_up(p.group_out(), kPack)),
        round_(units_of_round()),
        gamma_(p, args.gamma, channels_, static_cast<float>(p.gamma_offset), 1),
        x_(kPoints * inputs_of_point()),
        q_(kPoints * gradients_of_point()),
        weight_(kPoints * weights_of_point()),
        grad_weight_(kPoints * weights_of_point()),
        dots_(round_ * NH * channels_),
        tiles_(round_),
        sums_(p, blocks_.along_h * blocks_.along_w, channels_, 1) {}

  // Returns whether all is finite; where not, it is to be computed directly.
  bool operator()() {
    const bool gamma_wanted = args_.grad_gamma != nullptr;
    Scratch<float> packed(gamma_wanted ? packed_size(pass_, p_.groups, p_.group_in()) : 0);
    if (gamma_wanted) pack_weights<float>(packed, pass_, p_, args_.weight, /*transposed=*/true);
    for (int64_t g = 0; g < p_.groups && finite_; ++g) {
      if (gamma_wanted) transform_weight(g);
      for (int64_t first = 0; first < unit_count_; first += round_) {
        const int64_t count = std::min(round_, unit_count_ - first);
        transform_units(g, first, count);
        multiply_units(g, first, count);
      }
      if (args_.grad_weight.data != nullptr)
        with_storage<float>(p_.dtype, [&](auto element) { store_weight<decltype(element)>(g); });
    }
    if (finite_) sums_.finish(p_, args_, gamma_);
    return finite_;
  }

 private:
  static constexpr int L = kLanes<float>, R = kWinogradTaps, MH = T::H::M, MW = T::W::M, NH = T::H::N, NW = T::W::N,
                       kPoints = T::kPoints;
  static constexpr int64_t kPack = std::lcm(L, kGradRows);  // output channels that lie together in Q
  static constexpr int64_t kBlock = 64 / kPack * kPack;     // output channels that are loaded together
  static constexpr int64_t kWide = kGradVectors * L;        // input channels of a register tile, together in X

  static Blocks unit_blocks(const Problem& p, const Pass<float>& pass) {
    const int64_t tiles_h = (p.h.out + MH - 1) / MH, tiles_w = (p.w.out + MW - 1) / MW;
    if (tiles_w > kUnitTiles) return blocks_of(1, MH, kUnitTiles * MW, p.batch, pass.h, pass.w);
    return blocks_of(1, share_evenly(tiles_h, kUnitTiles / tiles_w) * MH, tiles_w * MW, p.batch, pass.h, pass.w);
  }

  int64_t units_of_round() const {
    const int64_t unit_bytes = kPoints * unit_tiles_ * (inputs_ + channels_) * sizeof(float);
    return std::min(round_up(share_evenly(unit_count_, std::max<int64_t>(kRoundBytes / unit_bytes, 1)), thread_count()),
                    unit_count_);
  }

  int64_t tiles_of_round() const { return round_ * unit_tiles_; }
  int64_t weights_of_point() const { return apart(channels_ * inputs_); }
  int64_t inputs_of_point() const { return apart(inputs_ * tiles_of_round()); }
  int64_t gradients_of_point() const { return apart(channels_ * tiles_of_round()); }
  // Where a point's elements of a tile are: input channels from c0 on (kWide of them lie together), and a pack.
  int64_t x_at(int64_t point, int64_t c0, int64_t tile) const {
    return point * inputs_of_point() + c0 * tiles_of_round() + tile * std::min(kWide, inputs_ - c0);
  }
  int64_t q_at(int64_t point, int64_t k0, int64_t tile) const {
    return point * gradients_of_point() + k0 * tiles_of_round() + tile * kPack;
  }

  // G W G^T as [point][output channel][input channel]
  void transform_weight(int64_t g) {
    const int64_t sources = p_.group_out();
    parallel(sources, [&](int64_t begin, int64_t end) {
      const Panels<float> panels{p_.group_in()};
      for (int64_t k = begin; k < end; ++k)
        for (int64_t c = 0; c < inputs_; c += L) {
          const int64_t panel = c / panels.kWidth, width = panels.vectors(panel) * L;
          const float* from = pass_.weights[g] + panel * panels.kWidth * pass_.products + k * width + c % panels.kWidth;
          transform_filter<T>(weight_ + k * inputs_ + c, weights_of_point(), from, sources * width);
        }
    });
  }

  void transform_units(int64_t g, int64_t first, int64_t count) {
    const int64_t strip_size = (blocks_.rows + R - 1) * (blocks_.columns + R - 1) * p_.group_in();
    parallel(count, [&](int64_t begin, int64_t end) {
      Scratch<float> strip(strip_size + L), u(blocks_.rows * blocks_.columns * kBlock);
      strip.zero(strip_size + L);
      for (int64_t i = begin; i < end; ++i) {
        const Extent e = extent_of(blocks_, pass_, p_.batch, first + i);
        tiles_[i] = whole_tiles<T>(e).positions() / (MH * MW);
        transform_input(strip, g, e, i);
        for (int64_t k0 = 0; k0 < channels_; k0 += kBlock) {
          const int64_t channels = std::min(kBlock, channels_ - k0);
          load_gradient(u, e, first + i, g, k0, channels);
          transform_gradient(u, e, i, k0, channels);
        }
      }
    });
  }

  void transform_input(float* strip, int64_t g, const Extent& e, int64_t unit) {
    const int64_t pixel = p_.group_in();
    const Extent whole = whole_tiles<T>(e);
    const int64_t line = (whole.columns + R - 1) * pixel;
    fill_strip(strip, whole, pass_.h, pass_.w, g * pixel, pixel, Plain<float>{args_.input, load_});
    int64_t tile = unit * unit_tiles_;
    for (int64_t h = 0; h < whole.rows; h += MH)
      for (int64_t w = 0; w < whole.columns; w += MW, ++tile)
        for (int64_t c = 0; c < pixel; c += L) {
          const int64_t c0 = c / kWide * kWide;
          transform_tile<T>(x_ + x_at(0, c0, tile) + c - c0, inputs_of_point(), strip + h * line + w * pixel + c, line,
                            pixel);
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

  // A task is a pack of output channels and a row of points, for all units of the round.
  void multiply_units(int64_t g, int64_t first, int64_t count) {
    const int64_t packs = channels_ / kPack;
    const bool gamma_wanted = args_.grad_gamma != nullptr;
    parallel(NH * packs, [&](int64_t begin, int64_t end) {
      Scratch<Vector<float>> grad_gamma(count * kPack);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task / packs, k = task % packs * kPack;
        std::fill(grad_gamma + 0, grad_gamma + count * kPack, Vector<float>{});
        for (int64_t point = row * NW; point < (row + 1) * NW; ++point)
          for (int64_t c0 = 0; c0 < inputs_; c0 += kWide)
            multiply_point(g, first, count, point, k, c0, gamma_wanted ? grad_gamma + 0 : nullptr);
        for (int64_t unit = 0; unit < count; ++unit)
          for (int m = 0; m < kPack; ++m) {
            double sum = 0;
            for (int lane = 0; lane < L; ++lane) sum += grad_gamma[unit * kPack + m][lane];
            dots_[(unit * NH + row) * channels_ + k + m] = sum;
          }
      }
    });
    for (int64_t unit = 0; unit < count; ++unit)
      for (int64_t k = 0; k < p_.group_out(); ++k) {
        double sum = 0;
        for (int row = 0; row < NH; ++row) sum += dots_[(unit * NH + row) * channels_ + k];
        if (!std::isfinite(sum)) finite_ = false;
        sums_.product(0, first + unit, g)[k] = sum;
      }
  }

  void multiply_point(int64_t g, int64_t first, int64_t count, int64_t point, int64_t k, int64_t c0,
                      Vector<float>* grad_gamma) {
    switch (std::min(kWide, inputs_ - c0) / L) {
      case 1:
        return multiply_point<1>(g, first, count, point, k, c0, grad_gamma);
      case 2:
        return multiply_point<2>(g, first, count, point, k, c0, grad_gamma);
      case 3:
        return multiply_point<3>(g, first, count, point, k, c0, grad_gamma);
#if defined(__aarch64__)
      case 4:
        return multiply_point<4>(g, first, count, point, k, c0, grad_gamma);
#endif
    }
  }

  template <int V>
  void multiply_point(int64_t g, int64_t first, int64_t count, int64_t point, int64_t k, int64_t c0,
                      Vector<float>* grad_gamma) {
    const int64_t at = point * weights_of_point() + k * inputs_ + c0,
                  units_of_a_sample = blocks_.along_h * blocks_.along_w;
    const float *q = q_ + q_at(point, k, 0), *x = x_ + x_at(point, c0, 0);
    float* grad_weight = args_.grad_weight.data == nullptr ? nullptr : grad_weight_ + at;
    for (int64_t unit = 0; unit < count; ++unit) {
      const float* gamma = gamma_.at((first + unit) / units_of_a_sample, g) + k;
      for (int64_t m = 0; m < kPack; m += kGradRows)
        UnitTile<float, V>{q + unit * unit_tiles_ * kPack + m,
                           x + unit * unit_tiles_ * V * L,
                           kPack,
                           1,
                           tiles_[unit],
                           0,
                           V * L,
                           weight_ + at + m * inputs_,
                           grad_weight == nullptr ? nullptr : grad_weight + m * inputs_,
                           inputs_,
                           V * L,
                           gamma + m,
                           grad_gamma == nullptr ? nullptr : grad_gamma + unit * kPack + m,
                           first + unit == 0}();
    }
  }

  // dW = G^T (the sum) G, into the weight's own layout and type.
  template <class E>
  void store_weight(int64_t g) {
    const View& out = args_.grad_weight;
    parallel(p_.group_out(), [&](int64_t begin, int64_t end) {
      Vector<float> zero_or_nan{};
      for (int64_t k = begin; k < end; ++k)
        for (int64_t c0 = 0; c0 < p_.group_in(); c0 += L) {
          Vector<float> points[NH][NW], taps[R][R];
          for (int h = 0; h < NH; ++h)
            for (int w = 0; w < NW; ++w)
              points[h][w] = load(grad_weight_ + (h * NW + w) * weights_of_point() + k * inputs_ + c0);
          transform_2d(
              points, taps, [](const auto& in, auto& out) { T::H::filter_gradient(in, out); },
              [](const auto& in, auto& out) { T::W::filter_gradient(in, out); });
          float turned[R * R][L];
          for (int h = 0; h < R; ++h)
            for (int w = 0; w < R; ++w) zero_or_nan += 0 * taps[h][w], store(turned[h * R + w], taps[h][w]);
          E* dst = static_cast<E*>(out.data) + (g * p_.group_out() + k) * out.n + c0 * out.c;
          const int64_t count = std::min<int64_t>(L, p_.group_in() - c0);
          if (out.w == 1 && out.h == R) {
            turn<float>(dst, out.c, turned[0], L, R * R, count);
          } else {
            for (int h = 0; h < R; ++h)
              for (int w = 0; w < R; ++w)
                for (int64_t c = 0; c < count; ++c)
                  dst[c * out.c + h * out.h + w * out.w] = narrow<E>(turned[h * R + w][c]);
          }
        }
      if (!is_zero(zero_or_nan)) finite_ = false;
    });
  }

  const Problem& p_;
  const GradWeightArgs& args_;
  const LoadRow<float> load_;
  Pass<float> pass_;  // and W with the input channels side by side
  const Blocks blocks_;
  const int64_t unit_count_, unit_tiles_, inputs_, channels_, round_;
  const Factors<float> gamma_;
  Scratch<float> x_, q_, weight_, grad_weight_;
  Scratch<double> dots_;
  std::vector<int64_t> tiles_;  // of each unit of a round
  UnitSums sums_;
  std::atomic<bool> finite_{true};
};

}  // namespace

bool run_grad_weight_by_winograd(const Problem& p, const GradWeightArgs& args) {
  return with_tiles<Tiles<2, 2>>(p, [&](auto t) { return GradWeightWinograd<decltype(t)>(p, args)(); });
}

}  // namespace film::FILM_ISA
