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
  StorePixels(const Problem& p, const View& view)
      : rows_(view, p.dtype, p.h.in, p.w.in, p.in_channels, /*straight=*/true), channels_(p.in_channels) {}

  void make_room(int64_t columns) { rows_.make_room(columns); }
  void begin(int64_t n, int64_t h, const ColumnRange& columns) { rows_.begin(n, h, columns); }
  StoreColumnsOfPass<A> epilogue(int64_t first, int64_t spacing) {
    return {rows_.row() + first * rows_.pitch(), spacing * rows_.pitch(), channels_};
  }
  void end() {
    if (rows_.full()) finish();
  }
  void finish() {
    if (rows_.held() > 0) rows_.store();
  }

 private:
  ResultRows<A> rows_;
  int64_t channels_;
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
                        StorePixels<A>(p, args.grad_input));
}

}  // namespace

void run_depthwise_grad_input(const Problem& p, const GradInputArgs& args) {
  p.dtype == DType::f64 ? grad_input<double>(p, args) : grad_input<float>(p, args);
}

}  // namespace film::FILM_ISA
