// The weights (K, C/groups, kh, kw) of all groups as panels of pairs, [tap][pair of source channels][vectors * lanes]:
// what pack_weights.h has for floats.
#pragma once

#include "pack_weights.h"
#include "pairs.h"

namespace film::FILM_ISA {

inline void pack_pairs(Pair* packed, Pass<Pair>& pass, const Problem& p, const View& weight, bool transposed) {
  constexpr int64_t kPairsOfTask = 16 * 1024, L = kLanes<Pair>;
  constexpr int64_t kSources = 32;  // source channels that are packed together
  const int64_t channels = transposed ? p.group_in() : p.group_out(),
                sources = transposed ? p.group_out() : p.group_in();
  const Panels<Pair> panels{channels};
  const int64_t group_size = pass.products * panels.padded(), vectors = panels.padded() / L, pairs = pairs_of(sources);
  point_at_weights<Pair>(pass, packed, p.groups, channels);
  if (pass.products == 0) return;
  const int64_t taps = pass.h.offset.size() * pass.w.offset.size(), cuts = (sources + kSources - 1) / kSources;
  const Pass<float> same{pass.h, pass.w, 0, {}};
  const LanePacker<float, bf16> turn(same, weight, p.h, p.w, kSources, transposed);
  const auto body = [&](int64_t begin, int64_t end) {
    Scratch<float> turned(taps * kSources * L);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cut = i % cuts, vector = i / cuts % vectors, g = i / cuts / vectors, s0 = cut * kSources;
      const int64_t panel = vector / kTileVectors, width = panels.vectors(panel) * L, c = vector * L;
      const int64_t count = std::min(kSources, sources - s0);
      turn(turned, L, g * (transposed ? 0 : channels) + c, std::min(L, channels - c),
           g * (transposed ? sources : 0) + s0, 0, count);
      Pair* dst = packed + g * group_size + panel * panels.kWidth * pass.products + vector % kTileVectors * L;
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t s = 0; s < count; s += 2) {
          const float* at = turned + (tap * kSources + s) * L;
          const Vector<float> second = s + 1 < count ? load(at + L) : Vector<float>{};
          store(dst + (tap * pairs + (s0 + s) / 2) * width, pair_up(load(at), second));
        }
    }
  };
  const int64_t count = p.groups * vectors * cuts;
  p.groups* group_size < kPairsOfTask ? body(0, count) : parallel(count, body);
}

}  // namespace film::FILM_ISA
