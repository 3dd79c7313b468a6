// dx of depthwise convolutions: the same sums, with the filters turned round, of rows of gamma * u. A stride's passes
// for one row of dx are taken together, so that what they read is made once and what they write is stored together.
#include "depthwise_rows.h"
#include "modulated.h"

namespace film::FILM_ISA {
namespace {

template <class A>
struct StoreColumnsOfPass {
  A* out;  // the pass's column 0
  int64_t pitch, channels;

  [[gnu::always_inline]] void operator()(const Vector<A> (&sum)[kDepthwiseColumns], int64_t w, int64_t count,
                                         int64_t c) const {
    constexpr int J = kDepthwiseColumns, L = kLanes<A>;
    const int64_t lanes = std::min<int64_t>(L, channels);
    A* at = out + w * pitch + c;
    if (count == J && lanes == L)
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) store(at + j * pitch, sum[j]);
    else
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j)
        if (j < count) store_part(at + j * pitch, sum[j], lanes);
  }
};

template <class A>
class StorePixels {
 public:
  StorePixels(const View& view, DType dtype, int64_t channels)
      : out_(view, dtype, channels, /*straight=*/true), channels_(channels) {}

  void make_room(int64_t columns) { pixels_.resize(out_.elements(columns)); }
  void begin(int64_t n, int64_t h, const ColumnRange& columns) { n_ = n, h_ = h, columns_ = columns; }
  StoreColumnsOfPass<A> epilogue(int64_t first, int64_t spacing) {
    return {out_.at(pixels_.data(), n_, h_, columns_.first) + first * out_.pitch(), spacing * out_.pitch(), channels_};
  }
  void end() {
    if (!out_.straight()) out_.store(pixels_.data(), n_, h_, columns_);
  }

 private:
  const PixelRow<A> out_;
  const int64_t channels_;
  std::vector<A> pixels_;
  int64_t n_ = 0, h_ = 0;
  ColumnRange columns_{};
};

template <class A>
void grad_input(const Problem& given, const GradInputArgs& args) {
  const Problem p = without_groups(given);
  const DepthwiseFilters<A> filters(p, args.weight);
  const int64_t along_h = std::min(p.h.stride, p.h.in), along_w = std::min(p.w.stride, p.w.in);
  std::vector<DepthwisePass<A>> passes;
  for (int64_t fh = 0; fh < along_h; ++fh)
    for (int64_t fw = 0; fw < along_w; ++fw)
      passes.emplace_back(grad_input_taps(p.h, fh), grad_input_taps(p.w, fw), filters, p.in_channels);
  const Factors<A> gamma(p, args.gamma, p.out_channels, static_cast<A>(p.gamma_offset), A(1));
  convolve_depthwise<A>(passes, along_w, p.batch, p.in_channels,
                        Modulated<A>{p, args.grad, args.bits, &gamma, row_loader<A>(p.dtype)},
                        StorePixels<A>(args.grad_input, p.dtype, p.in_channels));
}

}  // namespace

void run_depthwise_grad_input(const Problem& p, const GradInputArgs& args) {
  p.dtype == DType::f64 ? grad_input<double>(p, args) : grad_input<float>(p, args);
}

}  // namespace film::FILM_ISA
