// The weights (K, C/groups, kh, kw) of all groups as panels of [R][vectors * lanes], as the tile reads them.
#pragma once

#include "interleave.h"
#include "kernels.h"
#include "strip.h"
#include "taps.h"
#include "tile.h"

namespace film::FILM_ISA {

// Packs one vector of lanes of a panel, for a range of source channels. Lanes are destination channels, and products
// are numbered (tap, source channel). Forward's destination channels are the weight's output channels; grad_input's
// (`transposed`) are its input channels.
template <class A, class T>
class LanePacker {
 public:
  LanePacker(const Pass<A>& pass, const View& weight, const Axis& h, const Axis& w, int64_t sources, bool transposed)
      : sources_(sources),
        lane_(transposed ? weight.c : weight.n),
        source_(transposed ? weight.n : weight.c),
        data_(static_cast<const T*>(weight.data)),
        kernel_(h.kernel * w.kernel),
        interleave_(kernel_) {
    const bool dense = weight.w == 1 && (h.kernel == 1 || weight.h == w.kernel);
    taps_in_lane_ = dense && lane_ == kernel_;
    taps_in_source_ = dense && source_ == kernel_;
    places_.assign(kernel_, -1);
    for (int64_t kh : pass.h.kernel)
      for (int64_t kw : pass.w.kernel) {
        places_[kh * w.kernel + kw] = static_cast<int64_t>(taps_.size()) * sources;
        taps_.push_back(kh * weight.h + kw * weight.w);
      }
  }

  // Writes dst[product * width + lane] for the sources begin .. end of those from `s0` on. `first` is the weight's
  // channel of lane 0; the first `lanes` lanes are channels, and the others get zeros.
  void operator()(A* dst, int64_t width, int64_t first, int64_t lanes, int64_t s0, int64_t begin, int64_t end) const {
    const T* src = data_ + first * lane_ + s0 * source_;
    if (lane_ == 1) {
      each(
          [&](size_t t, int64_t s) {
            const Vector<A> v = load_as<A>(src + taps_[t] + s * source_, lanes);
            store(dst + (t * sources_ + s) * width, lanes < kLanes<A> ? keep(v, lanes) : v);
          },
          begin, end);
    } else if (source_ == 1) {
      for (size_t t = 0; t < taps_.size(); ++t)
        turn(src + taps_[t], lanes, begin, end,
             [&](int64_t s, Vector<A> v) { store(dst + (t * sources_ + s) * width, v); });
    } else if (taps_in_source_) {
      int64_t s = begin, tap = 0;
      turn(src, lanes, begin * kernel_, end * kernel_, [&](int64_t, Vector<A> v) {
        if (places_[tap] >= 0) store(dst + (places_[tap] + s) * width, v);
        if (++tap == kernel_) tap = 0, ++s;
      });
    } else if (taps_in_lane_) {
      for (int64_t s = begin; s < end; ++s) {
        const auto put = [&](int64_t tap, Vector<A> v) {
          if (places_[tap] >= 0) store(dst + (places_[tap] + s) * width, v);
        };
        if (lanes == kLanes<A> && interleave_.suits(kernel_))
          interleave_.apart(src + s * source_, put);
        else
          turn(src + s * source_, lanes, 0, kernel_, put);
      }
    } else {
      each(
          [&](size_t t, int64_t s) {
            A* at = dst + (t * sources_ + s) * width;
            for (int64_t lane = 0; lane < kLanes<A>; ++lane)
              at[lane] = lane < lanes ? widen<A>(src[taps_[t] + s * source_ + lane * lane_]) : A(0);
          },
          begin, end);
    }
  }

 private:
  static Vector<A> keep(Vector<A> v, int64_t lanes) {
    return lane_numbers<A>() < static_cast<typename VectorOf<A>::integer>(lanes) ? v : Vector<A>{};
  }

  template <class F>
  void each(const F& body, int64_t begin, int64_t end) const {
    for (size_t t = 0; t < taps_.size(); ++t)
      for (int64_t s = begin; s < end; ++s) body(t, s);
  }

  // Calls body(i, vector of src[lane * lane_ + i]) for each i of a range.
  template <class F>
  [[gnu::always_inline]] void turn(const T* src, int64_t lanes, int64_t begin, int64_t end, const F& body) const {
    constexpr int L = kLanes<A>;
    for (int64_t i = begin; i < end; i += L) {
      Vector<A> block[L];
#pragma GCC unroll 16
      for (int lane = 0; lane < L; ++lane)
        block[lane] = lane < lanes ? load_as<A>(src + lane * lane_ + i, end - i) : Vector<A>{};
      transpose<A>(block);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j)
        if (i + j < end) body(i + j, block[j]);
    }
  }

  int64_t sources_, lane_, source_;
  const T* data_;
  int64_t kernel_;
  Interleave<A> interleave_;
  bool taps_in_lane_, taps_in_source_;
  std::vector<int64_t> places_;  // of each kernel tap, its first product or -1
  std::vector<int64_t> taps_;    // offsets in the weight of the taps that the pass has
};

// Lets a pass read its weights from where `pack_weights` has put them, or will.
template <class A>
void point_at_weights(Pass<A>& pass, const A* packed, int64_t groups, int64_t channels) {
  const int64_t group_size = pass.products * Panels<A>{channels}.padded();
  for (int64_t g = 0; g < groups; ++g) pass.weights.push_back(packed + g * group_size);
}

template <class A>
void pack_weights(A* packed, Pass<A>& pass, const Problem& p, const View& weight, bool transposed) {
  constexpr int64_t kElementsOfTask = 16 * 1024, kLeastSources = 32;
  const int64_t channels = transposed ? p.group_in() : p.group_out(),
                sources = transposed ? p.group_out() : p.group_in();
  const Panels<A> panels{channels};
  const int64_t group_size = pass.products * panels.padded(), lanes = kLanes<A>, vectors = panels.padded() / lanes;
  point_at_weights<A>(pass, packed, p.groups, channels);
  if (pass.products == 0) return;
  // The work is cut along the sources too where there are more threads than vectors of lanes.
  const int64_t most =
      std::max<int64_t>(1, std::min(4 * thread_count() / (p.groups * vectors), sources / kLeastSources));
  const int64_t cuts = std::min(most, 1 + p.groups * group_size / kElementsOfTask);
  with_storage<A>(p.dtype, [&](auto element) {
    const LanePacker<A, decltype(element)> pack(pass, weight, p.h, p.w, sources, transposed);
    const auto body = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t cut = i % cuts, vector = i / cuts % vectors, g = i / cuts / vectors;
        const int64_t panel = vector / kTileVectors, c0 = panel * panels.kWidth, c = vector * lanes;
        const int64_t first = g * (transposed ? 0 : channels) + c, s0 = g * (transposed ? sources : 0);
        pack(packed + g * group_size + c0 * pass.products + (c - c0), panels.vectors(panel) * lanes, first,
             std::min(lanes, channels - c), s0, sources * cut / cuts, sources * (cut + 1) / cuts);
      }
    };
    if (p.groups * group_size < kElementsOfTask)
      body(0, cuts * vectors * p.groups);
    else
      parallel(cuts * vectors * p.groups, body);
  });
}

template <class A>
int64_t packed_size(const Pass<A>& pass, int64_t groups, int64_t channels) {
  return groups * pass.products * Panels<A>{channels}.padded();
}

}  // namespace film::FILM_ISA
