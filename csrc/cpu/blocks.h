// How the positions of a pass, and its panels of output channels, are cut into blocks and parts for the threads.
#pragma once

#include <limits>

#include "kernels.h"
#include "row_tile.h"

namespace film::FILM_ISA {

// Blocks of positions (samples x rows x columns). One thread works on a block at a time; where there are few blocks,
// the panels of each are cut into parts, and one thread works on a part.
struct Blocks {
  int64_t samples, rows, columns;     // of one block
  int64_t along_n, along_h, along_w;  // how many blocks
  int64_t parts = 1;
  int64_t positions() const { return samples * rows * columns; }
  int64_t blocks() const { return along_n * along_h * along_w; }
};

inline Blocks blocks_of(int64_t samples, int64_t rows, int64_t columns, int64_t batch, const Taps& h, const Taps& w) {
  return {samples,
          rows,
          columns,
          (batch + samples - 1) / samples,
          (h.count + rows - 1) / rows,
          (w.count + columns - 1) / columns};
}

// How many rows each tile has where `positions` are shared out evenly among as few tiles as will do.
inline int64_t tile_rows(int64_t positions) { return share_evenly(positions, kTileRows); }

// The size of a part where `total` is cut into as few parts of at most `most` as will do; or into a few more, if
// `times` times so many parts are then shared out evenly among the threads.
inline int64_t share_among_threads(int64_t total, int64_t most, int64_t times) {
  int64_t parts = (total + most - 1) / most;
  for (int64_t more = parts; more < std::min(parts + thread_count(), total + 1); ++more)
    if (more * times % thread_count() == 0) {
      parts = more;
      break;
    }
  return (total + parts - 1) / parts;
}

// About how many cycles the busiest thread takes, of which only ratios count: for products in tiles that may not be
// full, for weights that every block reads once, and for the strip and patches that every part fills.
template <class A>
double cost(const Blocks& b, const Pass<A>& pass, const Panels<A>& panels, int64_t source_channels) {
  constexpr double kStrip = 0.4, kPatch = 0.15, kStream = 2, kLeastTile = 8, kTask = 1000;
  const bool direct = reads_strip(pass, panels, b.columns, source_channels);
  const int64_t together = direct ? b.columns : b.positions();  // positions that are shared out among tiles
  const int64_t rows = tile_rows(together), tiles = (together + rows - 1) / rows * (b.positions() / together);
  const double vectors = panels.padded() / kLanes<A>, patches = direct ? 0 : kPatch * b.positions();
  const double products = tiles * std::max<double>(rows, kLeastTile / panels.vectors(0)) + kStream;
  const double strip = double(b.samples) * pass.h.extent(b.rows) * pass.w.extent(b.columns) * source_channels;
  const double task = (products * vectors / b.parts + patches) * pass.products + kStrip * strip + kTask;
  const int64_t tasks = b.blocks() * b.parts;
  return task * ((tasks + thread_count() - 1) / thread_count());
}

// The cheapest way to cut a pass. A block is some samples, or where one sample is too large some of its rows, or where
// one row is too large some of its columns. Panels are cut into parts where there are few blocks, unless two panels
// share a byte of bits.
template <class A>
Blocks plan_blocks(const Pass<A>& pass, int64_t batch, int64_t groups, const Panels<A>& panels,
                   int64_t source_channels) {
  // Patches of a block take at most this many bytes, and a strip of so many positions about as much: L2 holds both.
  constexpr int64_t kPatchBytes = 512 * 1024, kMostTiles = 32, kCuts = 48;
  const int64_t tile_bytes = round_up(std::max<int64_t>(pass.products, 1), kChunk) * kTileRows * sizeof(A);
  const int64_t most = std::clamp<int64_t>(kPatchBytes / tile_bytes, 1, kMostTiles) * kTileRows;
  const int64_t rows = pass.h.count, columns = pass.w.count;
  Blocks best{};
  double least = std::numeric_limits<double>::max();
  const bool whole_bytes = panels.kWidth % 8 == 0 && (groups == 1 || panels.channels % 8 == 0);
  const int64_t most_parts = whole_bytes ? panels.count() : 1;
  const auto consider = [&](int64_t of_samples, int64_t of_rows, int64_t of_columns) {
    Blocks b = blocks_of(of_samples, of_rows, of_columns, batch, pass.h, pass.w);
    for (b.parts = 1; b.parts <= most_parts; b.parts *= 2) {
      const double cycles = cost(b, pass, panels, source_channels);
      if (cycles < least) least = cycles, best = b;
      if (b.blocks() * b.parts >= 4 * thread_count()) break;
    }
  };
  const auto consider_cuts = [&](int64_t total, int64_t most_of_one, const auto& body) {
    const int64_t fewest = (total + most_of_one - 1) / most_of_one;
    for (int64_t cuts = fewest; cuts <= std::min(total, fewest + kCuts); ++cuts) body((total + cuts - 1) / cuts);
  };
  if (rows * columns <= most)
    consider_cuts(batch, most / (rows * columns), [&](int64_t samples) { consider(samples, rows, columns); });
  if (columns <= most)
    consider_cuts(rows, most / columns, [&](int64_t some) { consider(1, some, columns); });
  else
    consider_cuts(columns, most, [&](int64_t some) { consider(1, 1, some); });
  return best;
}

// The part of the destination that a block covers.
struct Extent {
  int64_t n0, samples, h0, rows, w0, columns;
  int64_t positions() const { return samples * rows * columns; }
};

template <class A>
Extent extent_of(const Blocks& b, const Pass<A>& pass, int64_t batch, int64_t block) {
  const int64_t w = block % b.along_w, h = block / b.along_w % b.along_h, n = block / b.along_w / b.along_h;
  return {n * b.samples, std::min(b.samples, batch - n * b.samples),
          h * b.rows,    std::min(b.rows, pass.h.count - h * b.rows),
          w * b.columns, std::min(b.columns, pass.w.count - w * b.columns)};
}

}  // namespace film::FILM_ISA
