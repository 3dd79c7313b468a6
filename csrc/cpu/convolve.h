// The convolution that forward and grad_input share: an implicit matrix product, [positions x R] patches with [R x
// channels] packed weights, whose tiles stay in registers over the whole of R and then go to an epilogue.
#pragma once

#include "blocks.h"
#include "pack_weights.h"
#include "store_tile.h"

namespace film::FILM_ISA {

// Copies `count` products to place `at` of a patch row, whole vectors at a time.
template <class A>
inline void copy_products(A* row, int64_t at, const A* src, int64_t count) {
  constexpr int L = kLanes<A>;
  while (count > 0) {
    A* dst = row + at / kChunk * (kTileRows * kPitch<A>)+at % kChunk;
    const int64_t part = std::min(count, kChunk - at % kChunk);
    for (int64_t i = 0; i < part; i += L) store(dst + i, load(src + i));
    at += part, src += part, count -= part;
  }
}

// The strip that a block reads: [samples][rows][columns][channels], with zeros where the source has none.
template <class A, class Source>
void fill_strip(A* strip, const Extent& e, const Taps& h, const Taps& w, int64_t c0, int64_t channels,
                const Source& source) {
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns);
  const int64_t first_h = e.h0 * h.step + h.low(), first_w = e.w0 * w.step + w.low();
  const int64_t begin = std::clamp<int64_t>(-first_w, 0, columns);
  const int64_t end = std::clamp<int64_t>(w.source - first_w, begin, columns);
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < rows; ++r, strip += columns * channels) {
      const int64_t row = first_h + r;
      if (row < 0 || row >= h.source || begin == end) {
        std::memset(strip, 0, columns * channels * sizeof(A));
        continue;
      }
      std::memset(strip, 0, begin * channels * sizeof(A));
      source(strip + begin * channels, e.n0 + n, row, first_w + begin, first_w + end, c0, channels);
      std::memset(strip + end * channels, 0, (columns - end) * channels * sizeof(A));
    }
}

// Packs the patches of all positions of a block, a tile of `of_tile` rows after another.
template <class A>
void pack_patches(A* patches, int64_t of_tile, const A* strip, const Extent& e, const Pass<A>& pass, int64_t channels) {
  const Taps &h = pass.h, &w = pass.w;
  const int64_t rows = h.extent(e.rows), columns = w.extent(e.columns);
  const int64_t tile = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const bool run = w.consecutive();
  const int64_t length = run ? static_cast<int64_t>(w.offset.size()) * channels : channels;
  int64_t i = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; ++c, ++i) {
        A* dst = patches + i / of_tile * tile + i % of_tile * kPitch<A>;
        const A* src = strip + ((n * rows + r * h.step) * columns + c * w.step) * channels;
        int64_t at = 0;
        for (int64_t offset_h : h.offset) {
          const A* line = src + (offset_h - h.low()) * columns * channels;
          if (run) {
            copy_products(dst, at, line, length), at += length;
          } else {
            for (int64_t offset_w : w.offset)
              copy_products(dst, at, line + (offset_w - w.low()) * channels, length), at += length;
          }
        }
      }
}

// Runs one pass: for each block, group, panel and tile, epilogue(tile, vectors, rows, row count, group, first channel,
// channel count). `source_channels` and `channels` are those of a group, in the source and in the destination.
template <class A, class Source, class Epilogue>
void convolve(const Pass<A>& pass, int64_t batch, int64_t groups, int64_t source_channels, int64_t channels,
              const Source& source, const Epilogue& epilogue) {
  if (batch * pass.h.count * pass.w.count == 0) return;
  const Panels<A> panels{channels};
  const Blocks blocks = plan_blocks(pass, batch, panels, source_channels);
  const int64_t of_tile = tile_rows(blocks.positions()), tiles = (blocks.positions() + of_tile - 1) / of_tile;
  const int64_t tile_size = round_up(std::max<int64_t>(pass.products, 1), kChunk) / kChunk * kTileRows * kPitch<A>;
  const int64_t strip_size =
      blocks.samples * pass.h.extent(blocks.rows) * pass.w.extent(blocks.columns) * source_channels;
  parallel(blocks.blocks() * blocks.parts, [&](int64_t begin, int64_t end) {
    Scratch<A> strip(strip_size), patches(tiles * tile_size), tile(kTileRows * panels.kWidth);
    std::vector<Row> rows(blocks.positions());
    int64_t packed = -1;  // the block and group whose patches are there
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / blocks.parts, part = task % blocks.parts;
      const Extent e = extent_of(blocks, pass, batch, block);
      int64_t count = 0;
      for (int64_t n = 0; n < e.samples; ++n)
        for (int64_t r = 0; r < e.rows; ++r)
          for (int64_t c = 0; c < e.columns; ++c)
            rows[count++] = {e.n0 + n, pass.h.first + pass.h.spacing * (e.h0 + r),
                             pass.w.first + pass.w.spacing * (e.w0 + c)};
      for (int64_t g = 0; g < groups; ++g) {
        if (pass.products > 0 && packed != block * groups + g) {
          fill_strip(static_cast<A*>(strip), e, pass.h, pass.w, g * source_channels, source_channels, source);
          pack_patches(static_cast<A*>(patches), of_tile, static_cast<const A*>(strip), e, pass, source_channels);
          packed = block * groups + g;
        }
        const int64_t last = panels.count() * (part + 1) / blocks.parts;
        for (int64_t panel = panels.count() * part / blocks.parts; panel < last; ++panel) {
          const int vectors = panels.vectors(panel);
          const A* weights = pass.weights[g] + panel * panels.kWidth * pass.products;
          for (int64_t first = 0; first < count; first += of_tile) {
            const int64_t some = std::min(of_tile, count - first);
            tile_multiplier<A>(vectors, some)(pass.products, patches + first / of_tile * tile_size, weights, tile);
            epilogue(static_cast<A*>(tile), vectors, &rows[first], some, g, panel * panels.kWidth, panels.used(panel));
          }
        }
      }
    }
  });
}

}  // namespace film::FILM_ISA
