// Between [channel][tap] and [tap][channel] for a few taps, as a weight's lie: a vector of channels at a time, which is
// as many vectors as there are taps, and each of them is picked from pairs of the others.
#pragma once

#include "transpose.h"

namespace film::FILM_ISA {

template <class A>
class Interleave {
 public:
  // Whether it is faster than a transpose, which works on as many taps as a vector has lanes and leaves most of them
  // empty here: measured up to five taps.
  static bool suits(int64_t taps) {
#if defined(__AVX2__) || defined(__aarch64__)
    return taps >= 2 && taps <= kMostTaps;
#else
    return taps < 0;  // no instruction picks by numbers
#endif
  }

  explicit Interleave(int64_t taps) : taps_(taps) {
    if (!suits(taps)) return;
    for (int64_t o = 0; o < taps; ++o)
      for (int64_t lane = 0; lane < L; ++lane) {
        const int64_t apart = lane * taps + o;  // place of channel `lane`, tap o
        set(apart_[o], lane, apart / L, apart % L);
        const int64_t together = o * L + lane;  // place in [channel][tap] of this lane
        set(together_[o], lane, together % taps, together / taps);
      }
  }

  // Calls out(tap, vector of channels) for L channels of src[channel][tap].
  template <class T, class F>
  void apart(const T* src, const F& out) const {
    run(apart_, [&](int64_t i) { return load_as<A>(src + i * L, L); }, out);
  }

  // Writes dst[channel][tap] of L channels from src[tap * pitch + channel].
  template <class T>
  void together(T* dst, const A* src, int64_t pitch) const {
    run(
        together_, [&](int64_t i) { return load(src + i * pitch); },
        [&](int64_t i, Vector<A> v) { store_as<A>(dst + i * L, v, L); });
  }

 private:
  static constexpr int64_t L = kLanes<A>, kMostTaps = 5, kPairs = (kMostTaps + 1) / 2;
  struct Pick {
    Mask<A> from[kPairs], here[kPairs];  // of each pair of vectors: which lane, and whether it is this pair's
  };

  void set(Pick& pick, int64_t lane, int64_t vector, int64_t from) {
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      pick.here[pair][lane] = pair == vector / 2 ? -1 : 0;
      pick.from[pair][lane] = pair == vector / 2 ? vector % 2 * L + from : 0;
    }
  }

  template <class In, class Out>
  void run(const Pick* picks, const In& in, const Out& out) const {
    Vector<A> v[kMostTaps + 1];
    for (int64_t i = 0; i < taps_; ++i) v[i] = in(i);
    v[taps_] = v[taps_ - 1];
    for (int64_t o = 0; o < taps_; ++o) {
      Vector<A> picked = __builtin_shuffle(v[0], v[1], picks[o].from[0]);
      for (int64_t pair = 1; 2 * pair < taps_; ++pair)
        picked = picks[o].here[pair] ? __builtin_shuffle(v[2 * pair], v[2 * pair + 1], picks[o].from[pair]) : picked;
      out(o, picked);
    }
  }

  int64_t taps_;
  Pick apart_[kMostTaps], together_[kMostTaps];
};

}  // namespace film::FILM_ISA
