// dx = conv_transpose(gamma * u, W) with u = g * slope(bits); the product is formed while the gradient is loaded.
#include "planes.h"
#include "winograd.h"

namespace film::FILM_ISA {
namespace {

// The rows of gamma * u.
template <class A>
struct Modulated {
  const Problem& p;
  const GradInputArgs& args;
  const Factors<A>& gamma;
  LoadRow<A> load;

  void operator()(A* dst, int64_t n, int64_t h, int64_t w0, int64_t w1, int64_t k0, int64_t channels) const {
    load(dst, channels, args.grad, n, h, w0, w1, k0, channels);
    const uint8_t* bits = args.bits;
    if (bits != nullptr) bits += ((n * p.h.out + h) * p.w.out + w0) * p.bit_row();
    apply_bits(dst, channels, w1 - w0, channels, bits, p.bit_row(), k0, static_cast<A>(p.lower_slope),
               gamma.at(n, k0 / channels));
  }
};

template <class A>
auto store_to(const Problem& p, const GradInputArgs& args) {
  return [&p, &args, store_rows = tile_storer<A>(p.dtype)](const A* tile, int vectors, const Row* rows,
                                                           int64_t row_count, int64_t g, int64_t c0, int64_t count) {
    store_rows(args.grad_input, tile, vectors, rows, row_count, g * p.group_in() + c0, count);
  };
}

template <class A>
void grad_input(const Problem& p, const GradInputArgs& args) {
  const LoadRow<A> load = row_loader<A>(p.dtype);
  const Factors<A> gamma(p, args.gamma, p.group_out(), static_cast<A>(p.gamma_offset), A(1));
  const auto epilogue = store_to<A>(p, args);
  for (int64_t fh = 0; fh < std::min(p.h.stride, p.h.in); ++fh)
    for (int64_t fw = 0; fw < std::min(p.w.stride, p.w.in); ++fw) {
      Pass<A> pass{grad_input_taps(p.h, fh), grad_input_taps(p.w, fw), 0, {}};
      pass.products = pass.h.offset.size() * pass.w.offset.size() * p.group_out();
      Scratch<A> weights(packed_size(pass, p.groups, p.group_in()));
      pack_weights<A>(weights, pass, p, args.weight, /*transposed=*/true);
      convolve(pass, p.batch, p.groups, p.group_out(), p.group_in(), Modulated<A>{p, args, gamma, load}, epilogue);
    }
}

// Returns whether it did: where a sum is not finite, all is to be computed directly.
template <class T>
bool grad_input_by_winograd(const Problem& p, const GradInputArgs& args) {
  const LoadRow<float> load = row_loader<float>(p.dtype);
  const Factors<float> gamma(p, args.gamma, p.group_out(), static_cast<float>(p.gamma_offset), 1);
  const Pass<float> pass{grad_input_taps(p.h, 0), grad_input_taps(p.w, 0), 0, {}};
  const WinogradWeights<T> weights(pass, p, args.weight, true);
  return convolve_winograd(pass, weights, p.batch, p.groups, p.group_out(), p.group_in(),
                           Modulated<float>{p, args, gamma, load}, store_to<float>(p, args));
}

// The planes of gamma * u.
template <class A>
struct ModulatedPlanes {
  const Problem& p;
  const GradInputArgs& args;
  const Factors<A>& gamma;  // of one group: all channels
  LoadRow<A> load;
  std::vector<int32_t> words;

  void operator()(A* dst, int64_t pitch, int64_t n, int64_t h, int64_t w0, int64_t w1) {
    load(dst, pitch, args.grad, n, h, w0, w1, 0, p.out_channels);
    const uint8_t* bits = args.bits;
    if (bits != nullptr) bits += ((n * p.h.out + h) * p.w.out + w0) * p.bit_row();
    apply_words(dst, pitch, w1 - w0, p.out_channels, bits, p.bit_row(), words.data(), static_cast<A>(p.lower_slope),
                gamma.at(n, 0));
  }
};

template <class A>
struct StoreColumns {
  const View& view;
  StorePlanes<A> store_columns;
  const Taps& w;

  void begin() {}
  void operator()(A* tile, int vectors, int64_t n, int64_t h, int64_t i, int64_t count, int64_t c0, int64_t channels) {
    store_columns(view, tile, vectors * kLanes<A>, w, n, h, i, count, c0, channels);
  }
  void end(int64_t, int64_t, int64_t, int64_t) {}
};

template <class A>
void grad_input_in_planes(const Problem& p, const GradInputArgs& args) {
  Problem ungrouped = p;
  ungrouped.groups = 1;
  const Factors<A> gamma(ungrouped, args.gamma, p.out_channels, static_cast<A>(p.gamma_offset), A(1));
  for (int64_t fh = 0; fh < std::min(p.h.stride, p.h.in); ++fh)
    for (int64_t fw = 0; fw < std::min(p.w.stride, p.w.in); ++fw) {
      Pass<A> pass{grad_input_taps(p.h, fh), grad_input_taps(p.w, fw), 0, {}};
      pass.products = pass.h.offset.size() * pass.w.offset.size() * p.group_out();
      Scratch<A> weights(p.in_channels * pass.products);
      pack_plane_weights<A>(weights, pass, args.weight, row_loader<A>(p.dtype), p.groups, p.group_out(), p.group_in(),
                            true);
      const ModulatedPlanes<A> source{p, args, gamma, plane_loader<A>(p.dtype), std::vector<int32_t>(p.w.out)};
      convolve_planes(pass, p.batch, p.groups, p.group_out(), p.group_in(), source,
                      StoreColumns<A>{args.grad_input, plane_storer<A>(p.dtype), pass.w});
    }
}

}  // namespace

void run_grad_input(const Problem& p, const GradInputArgs& args) {
  if (suits_planes(p, args.grad))
    p.dtype == DType::f64 ? grad_input_in_planes<double>(p, args) : grad_input_in_planes<float>(p, args);
  else if (!suits_winograd(p) ||
           !with_tiles<Tiles<2, 2>>(p, [&](auto t) { return grad_input_by_winograd<decltype(t)>(p, args); }))
    p.dtype == DType::f64 ? grad_input<double>(p, args) : grad_input<float>(p, args);
}

}  // namespace film::FILM_ISA
