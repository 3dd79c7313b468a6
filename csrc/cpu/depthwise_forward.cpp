// forward of depthwise convolutions: bias, activation, FiLM and bits while the sums are in registers. For a smooth
// activation a row of z goes through norm_film's passes, out of the first cache.
#include "depthwise_rows.h"
#include "modulate.h"

namespace film::FILM_ISA {
namespace {

// What becomes of the sums of a run.
template <class A>
struct ModulateColumns {
  A* out;             // column 0 of the destination row
  int64_t out_pitch;  // from one column of the row to the next
  const A *bias, *gamma, *beta;
  uint8_t* bits;  // of column 0, or null
  int64_t bit_row, channels;
  A lower;
  bool only_z, linear, post;

  [[gnu::always_inline]] void operator()(Vector<A> (&y)[kDepthwiseColumns], int64_t w, int64_t count, int64_t c) const {
    constexpr int J = kDepthwiseColumns, L = kLanes<A>;
    const Vector<A> b = load(bias + c), zero{};
    const int64_t lanes = std::min<int64_t>(L, channels);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) y[j] += b;
    if (!only_z) {
      const Vector<A> f = load(gamma + c), s = load(beta + c), slope = splat(lower);
      if (!post)
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) y[j] = f * y[j] + s;
      if (bits != nullptr) put(y, bits + w * bit_row, count, c, lanes);
      if (!linear) {
        if (lower == 0)
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) y[j] = y[j] <= zero ? zero : y[j];  // NaN passes through
        else
#pragma GCC unroll 8
          for (int j = 0; j < J; ++j) y[j] = y[j] <= zero ? slope * y[j] : y[j];
      }
      if (post)
#pragma GCC unroll 8
        for (int j = 0; j < J; ++j) y[j] = f * y[j] + s;
    }
    A* at = out + w * out_pitch + c;
    if (count == J && lanes == L)
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) store(at + j * out_pitch, y[j]);
    else
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j)
        if (j < count) store_part(at + j * out_pitch, y[j], lanes);
  }

 private:
  [[gnu::always_inline]] void put(const Vector<A> (&v)[kDepthwiseColumns], uint8_t* at, int64_t count, int64_t c,
                                  int64_t lanes) const {
    constexpr int J = kDepthwiseColumns, L = kLanes<A>;
    const Vector<A> zero{};
    if (L >= 8 && count == J && lanes == L && c % 8 == 0)  // whole bytes
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        const uint32_t upper = to_bits<A>(~(v[j] <= zero));
        std::memcpy(at + j * bit_row + c / 8, &upper, std::max(L / 8, 1));
      }
    else
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j)
        if (j < count) put_bits(at + j * bit_row, c, lanes, to_bits<A>(~(v[j] <= zero)));
  }
};

template <class A>
class ModulatePixels {
 public:
  ModulatePixels(const Problem& p, const ForwardArgs& args, const Modulation<A>& by)
      : p_(p),
        args_(args),
        by_(by),
        rows_(args.output, p.dtype, p.h.out, p.w.out, p.out_channels, /*straight=*/by.smooth == nullptr) {}

  void make_room(int64_t columns) { rows_.make_room(columns); }

  void begin(int64_t n, int64_t h, const ColumnRange& columns) {
    n_ = n;
    bits_ = args_.bits == nullptr ? nullptr : args_.bits + (n * p_.h.out + h) * p_.w.out * p_.bit_row();
    rows_.begin(n, h, columns);
  }

  ModulateColumns<A> epilogue(int64_t, int64_t) {
    return {rows_.row(),
            rows_.pitch(),
            by_.bias.at(0, 0),
            by_.gamma.at(n_, 0),
            by_.beta.at(n_, 0),
            bits_,
            p_.bit_row(),
            p_.out_channels,
            static_cast<A>(p_.lower_slope),
            by_.smooth != nullptr,
            p_.activation == Activation::none,
            p_.position == Position::post};
  }

  void end() {
    if (rows_.full()) finish();
  }

  void finish() {
    if (rows_.held() == 0) return;
    if (by_.smooth != nullptr) {
      if (args_.z != nullptr) rows_.store_to(view_of_z(args_));
      const Rows<A> pixels{rows_.pixels(), p_.out_channels};
      by_.modulate_rows(rows_.pixel_count(), p_.out_channels, pixels, by_.gamma.at(n_, 0), by_.beta.at(n_, 0), pixels);
    }
    rows_.store();
  }

 private:
  const Problem& p_;
  const ForwardArgs& args_;
  const Modulation<A>& by_;
  ResultRows<A> rows_;
  int64_t n_ = 0;
  uint8_t* bits_ = nullptr;  // of the row's column 0
};

template <class A>
void forward(const Problem& given, const ForwardArgs& args) {
  const Problem p = without_groups(given);
  std::vector<DepthwisePass<A>> passes;
  passes.emplace_back(forward_taps(p.h), forward_taps(p.w), DepthwiseFilters<A>(p, args.weight), p.out_channels);
  const Modulation<A> by(p, args, round_up(p.out_channels, kLanes<A>), /*along=*/true);
  convolve_depthwise<A>(passes, 1, p.batch, p.out_channels, PlainPixels<A>(args.input, p.dtype, p.in_channels),
                        ModulatePixels<A>(p, args, by));
}

}  // namespace

void run_depthwise_forward(const Problem& p, const ForwardArgs& args) {
  p.dtype == DType::f64 ? forward<double>(p, args) : forward<float>(p, args);
}

}  // namespace film::FILM_ISA
