// The convolution that forward and grad_input share: an implicit matrix product, [positions x R] patches with [R x
// channels] packed weights, whose tiles stay in registers over the whole of R and then go to an epilogue.
#pragma once

#include "pack_weights.h"
#include "patches.h"
#include "store_tile.h"

namespace film::FILM_ISA {

// The destination's places of an extent, in its order; returns how many.
template <class A>
int64_t list_rows(std::vector<Row>& rows, const Extent& e, const Pass<A>& pass) {
  int64_t count = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; ++c)
        rows[count++] = {e.n0 + n, pass.h.first + pass.h.spacing * (e.h0 + r),
                         pass.w.first + pass.w.spacing * (e.w0 + c)};
  return count;
}

// Runs one pass: for each block, group, panel and tile, epilogue(tile, vectors, rows, row count, group, first channel,
// channel count). `source_channels` and `channels` are those of a group, in the source and in the destination.
template <class A, class Source, class Epilogue>
void convolve(const Pass<A>& pass, int64_t batch, int64_t groups, int64_t source_channels, int64_t channels,
              const Source& source, const Epilogue& epilogue) {
  if (batch * pass.h.count * pass.w.count == 0) return;
  const Panels<A> panels{channels};
  const Blocks blocks = plan_blocks(pass, batch, groups, panels, source_channels);
  const bool direct = reads_strip(pass, panels, blocks.columns, source_channels);
  const int64_t tile_size = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const int64_t strip_size =
      blocks.samples * pass.h.extent(blocks.rows) * pass.w.extent(blocks.columns) * source_channels;
  parallel(blocks.blocks() * blocks.parts, [&](int64_t begin, int64_t end) {
    const int64_t most_tiles = (blocks.positions() + kTileRows - 1) / kTileRows;
    Scratch<A> strip(strip_size), patches(direct ? 0 : most_tiles * tile_size), tile(kTileRows * panels.kWidth);
    std::vector<Row> rows(blocks.positions());
    std::vector<TilePlace<A>> tiles;
    std::vector<Piece> pieces;
    int64_t packed = -1;  // the block and group whose patches are there
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / blocks.parts, part = task % blocks.parts;
      const Extent e = extent_of(blocks, pass, batch, block);
      list_rows(rows, e, pass);
      place_tiles<A>(tiles, strip, direct ? nullptr : static_cast<const A*>(patches), tile_size, e, pass,
                     source_channels);
      for (int64_t g = 0; g < groups; ++g) {
        if (pass.products > 0 && packed != block * groups + g) {
          fill_strip(static_cast<A*>(strip), e, pass.h, pass.w, g * source_channels, source_channels, source);
          if (direct)
            pieces = pieces_of(pass, pass.w.extent(e.columns) * source_channels, source_channels);
          else
            pack_patches(static_cast<A*>(patches), static_cast<const A*>(strip), e, pass, source_channels);
          packed = block * groups + g;
        }
        const int64_t last = panels.count() * (part + 1) / blocks.parts;
        for (int64_t panel = panels.count() * part / blocks.parts; panel < last; ++panel) {
          const int vectors = panels.vectors(panel);
          const A* weights = pass.weights[g] + panel * panels.kWidth * pass.products;
          for (const TilePlace<A>& place : tiles) {
            if (direct)
              rows_multiplier<A>(vectors, place.count)(pieces.data(), pieces.data() + pieces.size(), place.at,
                                                       pass.w.step * source_channels, weights, tile);
            else
              tile_multiplier<A>(vectors, place.count)(pass.products, place.at, weights, tile, /*first=*/true);
            epilogue(static_cast<A*>(tile), vectors, &rows[place.first], place.count, g, panel * panels.kWidth,
                     panels.used(panel));
          }
        }
      }
    }
  });
}

}  // namespace film::FILM_ISA
