// One output channel of a weight (K, C/groups, kh, kw) of any layout, from and to the order (kh, kw, c) that the weight
// gradient works in.
#pragma once

#include "../problem.h"
#include "interleave.h"

namespace film::FILM_ISA {

template <class A>
class WeightOrder {
 public:
  WeightOrder(int64_t kernel_h, int64_t kernel_w)
      : kernel_h_(kernel_h), kernel_w_(kernel_w), taps_(kernel_h * kernel_w), interleave_(taps_) {}

  // Loads source channels c0 .. c0 + sources of output channel k to dst[tap * pitch + c].
  template <class T>
  void load(A* dst, int64_t pitch, const View& v, int64_t k, int64_t c0, int64_t sources) const {
    const T* src = static_cast<const T*>(v.data) + k * v.n + c0 * v.c;
    if (in_planes(v)) {
      const int64_t whole = interleave_.suits(taps_) ? sources / kLanes<A> * kLanes<A> : 0;
      for (int64_t c = 0; c < whole; c += kLanes<A>)
        interleave_.apart(src + c * taps_,
                          [&](int64_t tap, Vector<A> x) { film::FILM_ISA::store(dst + tap * pitch + c, x); });
      return turn<A>(dst + whole, pitch, src + whole * taps_, taps_, sources - whole, taps_);
    }
    each_tap(v, [&](int64_t at) {
      if (v.c == 1)
        widen_copy(dst, src + at, sources);
      else
        for (int64_t c = 0; c < sources; ++c) dst[c] = widen<A>(src[at + c * v.c]);
      dst += pitch;
    });
  }

  // Stores them back.
  template <class T>
  void store(const View& v, int64_t k, const A* src, int64_t pitch, int64_t c0, int64_t sources) const {
    T* dst = static_cast<T*>(v.data) + k * v.n + c0 * v.c;
    if (in_planes(v)) {
      const int64_t whole = interleave_.suits(taps_) ? sources / kLanes<A> * kLanes<A> : 0;
      for (int64_t c = 0; c < whole; c += kLanes<A>) interleave_.together(dst + c * taps_, src + c, pitch);
      return turn<A>(dst + whole * taps_, taps_, src + whole, pitch, taps_, sources - whole);
    }
    each_tap(v, [&](int64_t at) {
      if (v.c == 1)
        narrow_copy(dst + at, src, sources);
      else
        for (int64_t c = 0; c < sources; ++c) dst[at + c * v.c] = narrow<T>(src[c]);
      src += pitch;
    });
  }

 private:
  // Whether taps lie side by side, and source channels one after another.
  bool in_planes(const View& v) const {
    return taps_ > 1 && v.c == taps_ && (kernel_w_ == 1 || v.w == 1) && (kernel_h_ == 1 || v.h == kernel_w_);
  }

  template <class F>
  void each_tap(const View& v, const F& body) const {
    for (int64_t h = 0; h < kernel_h_; ++h)
      for (int64_t w = 0; w < kernel_w_; ++w) body(h * v.h + w * v.w);
  }

  int64_t kernel_h_, kernel_w_, taps_;
  Interleave<A> interleave_;
};

}  // namespace film::FILM_ISA
