// The weights as tiles of AMX read them: panels of 32 channels, in the last perhaps 16, of steps of 32 products, each
// in limbs of one or two tiles. A step is some of the
// source channels at one tap; all taps of these follow, for which the same lines of the source are read again.
#pragma once

#include "amx_limbs.h"
#include "pack_weights.h"

namespace film::FILM_ISA {

// How the weights of one pass are laid out. Panels are those of the register tile (tile.h), in numbers of channels.
struct AmxLayout {
  AmxLayout(const Pass<float>& pass, int64_t groups, int64_t sources, int64_t channels, int limbs)
      : groups(groups),
        sources(sources),
        taps(static_cast<int64_t>(pass.h.offset.size() * pass.w.offset.size())),
        limbs(limbs),
        panels{channels} {}

  int64_t chunks() const { return (sources + kTileProducts - 1) / kTileProducts; }
  int64_t steps() const { return taps * chunks(); }
  int64_t tile_size() const { return steps() * limbs * kTileElements; }  // of 16 channels
  int64_t group_size() const { return panels.padded() / kTileSide * tile_size(); }
  int64_t size() const { return groups * group_size(); }
  int64_t panel(int64_t g, int64_t number) const { return g * group_size() + 2 * number * tile_size(); }

  int64_t groups, sources, taps;
  int limbs;
  Panels<float> panels;
};

static_assert(Panels<float>::kWidth == 2 * kTileSide);

// The weight (K, C/groups, kh, kw) of one pass, as one that was packed before or as one that is to be.
template <int LIMBS>
struct AmxWeights {
  const AmxLayout layout;
  const Pass<float>& pass;
  const Problem& p;
  const View& weight;
  const bool transposed;
  const uint16_t* packed = nullptr;

  // Packs number `panel` of group g to dst.
  void pack_panel(uint16_t* dst, int64_t g, int64_t panel) const {
    with_storage<float>(p.dtype, [&](auto element) { pack_as<decltype(element)>(dst, g, panel); });
  }

  // Packs all.
  void pack(uint16_t* dst) const {
    const int64_t panels = layout.panels.count();
    parallel(layout.groups * panels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / panels, panel = i % panels;
        pack_panel(dst + layout.panel(g, panel), g, panel);
      }
    });
  }

 private:
  // Each time a chunk of source channels is turned to [tap][source][channels] first, as the register tile has it.
  template <class T>
  void pack_as(uint16_t* dst, int64_t g, int64_t panel) const {
    const LanePacker<float, T> turn(pass, weight, p.h, p.w, kTileProducts, transposed);
    const int64_t channels = layout.panels.channels, sources = layout.sources, wide = layout.panels.vectors(panel);
    const int64_t size = layout.taps * kTileProducts * kTileSide, plane = wide * kTileElements;
    Scratch<float> turned(size);
    for (int64_t s = 0; s < sources; s += kTileProducts)
      for (int64_t tile = 0; tile < wide; ++tile) {
        const int64_t c = panel * 2 * kTileSide + tile * kTileSide, count = std::min(kTileProducts, sources - s);
        if (count < kTileProducts) turned.zero(size);
        turn(turned, kTileSide, g * (transposed ? 0 : channels) + c, std::min(kTileSide, channels - c),
             g * (transposed ? sources : 0) + s, 0, count);
        uint16_t* step = dst + s / kTileProducts * layout.taps * LIMBS * plane + tile * kTileElements;
        for (int64_t tap = 0; tap < layout.taps; ++tap, step += LIMBS * plane)
          for (int64_t row = 0; row < kTileSide; ++row) {
            const float* pair = turned + (tap * kTileProducts + row) * kTileSide;
            put_limbs<LIMBS>(step + row * kTileProducts, plane, load(pair), load(pair + kTileSide * kTileSide));
          }
      }
  }
};

}  // namespace film::FILM_ISA
