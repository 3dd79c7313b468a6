// The convolution that forward and grad_input share. It is an implicit matrix product: patches [positions x R] times
// packed weights [R x channels], in register tiles whose sums go to an epilogue when all R products are in them.
#pragma once

#include "pack_weights.h"
#include "patches.h"
#include "store_tile.h"

namespace film::FILM_ISA {

// The places of a block's positions in the destination, in the block's order. Returns how many there are.
template <class A>
int64_t list_places(std::vector<Place>& places, const Extent& e, const Pass<A>& pass) {
  int64_t count = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; ++c)
        places[count++] = {e.n0 + n, pass.h.first + pass.h.spacing * (e.h0 + r),
                           pass.w.first + pass.w.spacing * (e.w0 + c)};
  return count;
}

// The register tiles of floats; pairs have others (pair_tiles.h).
template <class A>
struct FloatTiles {
  static MultiplyTile<A> of_patches(int64_t channels, int64_t rows) { return tile_multiplier<A>(channels, rows); }
  static MultiplyRows<A> of_strip(int64_t channels, int64_t rows) { return rows_multiplier<A>(channels, rows); }
};

// Runs one pass: for each block, group, panel and tile, epilogue(tile, vectors, places, place count, group, first
// channel, channel count). `source_channels` and `channels` are those of a group, in the source and in the destination;
// of pairs the first are pairs of channels.
template <class E, class Source, class Epilogue, class Tiles = FloatTiles<E>>
void convolve(const Pass<E>& pass, int64_t batch, int64_t groups, int64_t source_channels, int64_t channels,
              const Source& source, const Epilogue& epilogue, Tiles = {}) {
  if (batch * pass.h.count * pass.w.count == 0) return;
  const Panels<E> panels{channels};
  const Blocks blocks = plan_blocks(pass, batch, groups, panels, source_channels);
  const bool direct = reads_strip(pass, panels, blocks.columns, source_channels);
  const int64_t tile_size = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<E>;
  const int64_t strip_size =
      blocks.samples * pass.h.extent(blocks.rows) * pass.w.extent(blocks.columns) * source_channels;
  parallel(blocks.blocks() * blocks.parts, [&](int64_t begin, int64_t end) {
    const int64_t most_tiles = (blocks.positions() + kTileRows - 1) / kTileRows;
    Scratch<E> strip(strip_size), patches(direct ? 0 : most_tiles * tile_size);
    Scratch<SumOf<E>> tile(kTileRows * panels.kWidth);
    std::vector<Place> places(blocks.positions());
    std::vector<TileStart<E>> tiles;
    std::vector<Stretch> stretches;
    int64_t packed = -1;  // the number of the block and group that strip and patches hold
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / blocks.parts, part = task % blocks.parts;
      const Extent e = extent_of(blocks, pass, batch, block);
      list_places(places, e, pass);
      list_tiles<E>(tiles, strip, direct ? nullptr : static_cast<const E*>(patches), tile_size, e, pass,
                    source_channels);
      for (int64_t g = 0; g < groups; ++g) {
        if (pass.products > 0 && packed != block * groups + g) {
          fill_strip(static_cast<E*>(strip), e, pass.h, pass.w, {g * source_channels, source_channels}, source);
          if (direct)
            stretches = stretches_of(pass, pass.w.extent(e.columns) * source_channels, source_channels);
          else
            pack_patches(static_cast<E*>(patches), static_cast<const E*>(strip), e, pass, source_channels);
          packed = block * groups + g;
        }
        const int64_t last = panels.count() * (part + 1) / blocks.parts;
        for (int64_t panel = panels.count() * part / blocks.parts; panel < last; ++panel) {
          const int vectors = panels.vectors(panel);
          const E* weights = pass.weights[g] + panel * panels.kWidth * pass.products;
          for (const TileStart<E>& start : tiles) {
            if (direct)
              Tiles::of_strip(panels.used(panel), start.count)(stretches.data(), stretches.data() + stretches.size(),
                                                               start.at, pass.w.step * source_channels, weights, tile);
            else
              Tiles::of_patches(panels.used(panel), start.count)(pass.products, start.at, weights, tile,
                                                                 /*first=*/true);
            epilogue(static_cast<SumOf<E>*>(tile), vectors, &places[start.first], start.count, g, panel * panels.kWidth,
                     panels.used(panel));
          }
        }
      }
    }
  });
}

}  // namespace film::FILM_ISA
