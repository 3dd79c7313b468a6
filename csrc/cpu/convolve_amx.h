// What convolve does, by tiles of AMX: the implicit matrix product of positions and weights, in limbs of bfloat16
// (amx_limbs.h). A tile of positions is read from where a block's source lies, at each tap anew; nothing is copied for
// it.
#pragma once

#include <atomic>

#include "amx_tile.h"
#include "amx_weights.h"
#include "convolve.h"

namespace film::FILM_ISA {

// A block's source in limbs: [limb][sample][row][column][pitch], zeros where the convolution pads.
struct LimbsOfBlock {
  LimbsOfBlock(const Extent& e, const Pass<float>& pass, int64_t sources)
      : rows(pass.h.extent(e.rows)),
        columns(pass.w.extent(e.columns)),
        // A cache line more keeps positions from falling into the same cache sets.
        pitch(round_up(sources, kTileProducts) + kTileProducts),
        // The last tile may go on behind the last position.
        plane((e.samples * rows * columns + (kTileSide - 1) * pass.w.step) * pitch) {}
  int64_t rows, columns, pitch, plane;
};

// Fills it, by way of `line`, which has room for a row.
template <int LIMBS, class Source>
void fill_limbs(uint16_t* dst, const LimbsOfBlock& b, float* line, const Extent& e, const Taps& h, const Taps& w,
                const ChannelRange& range, const Source& source) {
  const int64_t first_h = e.h0 * h.step + h.low(), first_w = e.w0 * w.step + w.low();
  const Inside inside(w, e.w0, b.columns);
  const auto clear = [&](int64_t begin, int64_t end) {
    for (int limb = 0; limb < LIMBS; ++limb)
      std::memset(dst + limb * b.plane + begin * b.pitch, 0, (end - begin) * b.pitch * sizeof(uint16_t));
  };
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < b.rows; ++r, dst += b.columns * b.pitch) {
      const int64_t row = first_h + r;
      if (row < 0 || row >= h.source || inside.count() == 0) {
        clear(0, b.columns);
        continue;
      }
      clear(0, inside.begin);
      clear(inside.end, b.columns);
      source(line, {e.n0 + n, row, first_w + inside.begin, inside.count()}, range);
      for (int64_t i = 0; i < inside.count(); ++i) {
        const float* src = line + i * range.count;
        uint16_t* at = dst + (inside.begin + i) * b.pitch;
        int64_t c = 0;
        for (; c + kTileProducts <= range.count; c += kTileProducts)
          put_limbs<LIMBS>(at + c, b.plane, load(src + c), load(src + c + kTileSide));
        if (c < range.count) {
          const int64_t left = range.count - c;
          put_limbs<LIMBS>(at + c, b.plane, load_part(src + c, left),
                           left > kTileSide ? load_part(src + c + kTileSide, left - kTileSide) : Vector<float>{});
        }
      }
    }
}

// A tile of positions: where it begins in a block's limbs, which of its 16 positions are the destination's, and the
// number of the first of these in the block.
struct AmxPositions {
  int64_t start;
  uint32_t mask;
  int64_t first;
};

// Lists the tiles of a block, row by row.
inline void list_tiles_by_rows(std::vector<AmxPositions>& tiles, const Extent& e, const LimbsOfBlock& b,
                               const Pass<float>& pass) {
  tiles.clear();
  int64_t first = 0;
  for (int64_t n = 0; n < e.samples; ++n)
    for (int64_t r = 0; r < e.rows; ++r)
      for (int64_t c = 0; c < e.columns; c += kTileSide) {
        const int64_t count = std::min(kTileSide, e.columns - c);
        const int64_t row = n * b.rows * b.columns + r * pass.h.step * b.columns;
        tiles.push_back({row + c * pass.w.step, (1u << count) - 1, first});
        first += count;
      }
}

// Lists them in places of the block that lie side by side, on through the padding between rows and between samples:
// each tile begins at the first position that is in none before it, so that there are no fewer.
inline void list_tiles_through(std::vector<AmxPositions>& tiles, const Extent& e, const LimbsOfBlock& b) {
  tiles.clear();
  int64_t first = 0, n = 0, r = 0, c = 0;  // the next position
  while (n < e.samples) {
    const int64_t start = (n * b.rows + r) * b.columns + c, begin = first;
    uint32_t mask = 0;
    for (int64_t at = start; n < e.samples && at < start + kTileSide; at = (n * b.rows + r) * b.columns + c) {
      mask |= 1u << (at - start);
      ++first;
      if (++c == e.columns) c = 0, ++r;
      if (r == e.rows) r = 0, ++n;
    }
    tiles.push_back({start, mask, begin});
  }
}

// Whichever are fewer.
inline void list_amx_tiles(std::vector<AmxPositions>& tiles, const Extent& e, const LimbsOfBlock& b,
                           const Pass<float>& pass) {
  const int64_t by_rows = e.samples * e.rows * ((e.columns + kTileSide - 1) / kTileSide);
  const bool has_taps = e.rows <= b.rows && e.columns <= b.columns;
  const bool side_by_side = has_taps && pass.h.step == 1 && pass.w.step == 1;
  if (side_by_side) list_tiles_through(tiles, e, b);
  if (!side_by_side || static_cast<int64_t>(tiles.size()) >= by_rows) list_tiles_by_rows(tiles, e, b, pass);
}

// Lists the steps of a panel of so many tiles, in the order of its weights.
inline void list_steps(std::vector<TileStep>& steps, const Pass<float>& pass, const LimbsOfBlock& b,
                       const AmxLayout& layout, int64_t tiles) {
  steps.clear();
  for (int64_t chunk = 0; chunk < layout.chunks(); ++chunk)
    for (int64_t h : pass.h.offset)
      for (int64_t w : pass.w.offset)
        steps.push_back({((h - pass.h.low()) * b.columns + w - pass.w.low()) * b.pitch + chunk * kTileProducts,
                         static_cast<int64_t>(steps.size()) * layout.limbs * tiles * kTileElements});
}

// Moves the rows of a tile that the mask names together. Returns how many they are.
inline int64_t gather_rows(float* rows, int64_t row, uint32_t mask) {
  int64_t count = 0;
  for (; mask != 0; mask &= mask - 1, ++count) {
    const int64_t from = __builtin_ctz(mask);
    if (from == count) continue;
    for (int64_t i = 0; i < row; i += kLanes<float>) store(rows + count * row + i, load(rows + from * row + i));
  }
  return count;
}

// How many positions a block may have, whose limbs stay in L2 beside a panel of weights.
inline int64_t most_amx_positions(const AmxLayout& layout, int position_limbs) {
  constexpr int64_t kBytes = 1792 << 10;
  const int64_t bytes = (layout.chunks() + 1) * kTileProducts * position_limbs * static_cast<int64_t>(sizeof(uint16_t));
  return std::max<int64_t>(kBytes / bytes, 2 * kTileSide);
}

// Where all positions are few, each thread takes some of the panels of all of them, so that no weight is read twice.
inline bool is_cut_by_panels(const Pass<float>& pass, int64_t batch, const AmxLayout& layout, int position_limbs) {
  const int64_t positions = batch * pass.h.count * pass.w.count;
  const bool whole_bytes = layout.groups == 1 || layout.panels.channels % 8 == 0;
  return positions <= most_amx_positions(layout, position_limbs) && whole_bytes &&
         layout.panels.count() % thread_count() == 0 && positions <= 3 * layout.panels.channels;
}

// How the pass is cut: by panels, or each thread takes some of the positions.
inline Blocks plan_amx_blocks(const Pass<float>& pass, int64_t batch, const AmxLayout& layout, int position_limbs) {
  const int64_t rows = pass.h.count, columns = pass.w.count, map = rows * columns, threads = thread_count();
  if (is_cut_by_panels(pass, batch, layout, position_limbs)) {
    Blocks b = blocks_of(batch, rows, columns, batch, pass.h, pass.w);
    b.parts = threads;
    return b;
  }
  const int64_t most = most_amx_positions(layout, position_limbs);
  const int64_t target = std::max<int64_t>(std::min(most, (batch * map + threads - 1) / threads), 2 * kTileSide);
  if (map <= target)
    return blocks_of(share_among_threads(batch, target / map, 1), rows, columns, batch, pass.h, pass.w);
  if (columns <= target)
    return blocks_of(1, share_among_threads(rows, target / columns, batch), columns, batch, pass.h, pass.w);
  return blocks_of(1, 1, round_up(share_evenly(columns, target), 2 * kTileSide), batch, pass.h, pass.w);
}

static_assert(kTileSide <= kMostPlaces);

// Returns whether it could, for taps are not too far apart, and all results are finite; where they are not, the
// epilogue has not run for all of them.
template <class Engine, int LA, int LB, class Source, class Epilogue>
bool convolve_amx(const Pass<float>& pass, const AmxWeights<LB>& weights, int64_t batch, const Source& source,
                  const Epilogue& epilogue) {
  if (batch * pass.h.count * pass.w.count == 0) return true;
  const AmxLayout& layout = weights.layout;
  const Panels<float>& panels = layout.panels;
  const Blocks blocks = plan_amx_blocks(pass, batch, layout, LA);
  const Extent largest{0, blocks.samples, 0, blocks.rows, 0, blocks.columns};
  const LimbsOfBlock most(largest, pass, layout.sources);
  constexpr int64_t kMostBytes = 32 << 20;  // of a thread's block
  if (LA * most.plane * static_cast<int64_t>(sizeof(uint16_t)) > kMostBytes) return false;
  // Weights that one block reads are packed panel by panel, just before: they need not leave L2 then.
  const bool at_once = weights.packed == nullptr && blocks.blocks() > 1;
  Scratch<uint16_t> all_packed(at_once ? layout.size() : 0);
  if (at_once) weights.pack(all_packed);
  const uint16_t* packed = at_once ? all_packed : weights.packed;
  std::atomic<bool> finite{true};
  parallel(blocks.blocks() * blocks.parts, [&](int64_t begin, int64_t end) {
    Scratch<uint16_t> limbs(LA * most.plane), own_panel(packed == nullptr ? 2 * layout.tile_size() : 0);
    Scratch<float> line(most.columns * layout.sources), tile(4 * kTileSide * kTileSide);
    std::vector<Place> places(blocks.positions());
    std::vector<AmxPositions> tiles;
    std::vector<TileStep> steps[2];  // of panels of one tile, and of two
    const EngineInUse<Engine> in_use;
    for (int64_t task = begin; task < end && finite; ++task) {
      const int64_t part = task % blocks.parts;
      const Extent e = extent_of(blocks, pass, batch, task / blocks.parts);
      const LimbsOfBlock b(e, pass, layout.sources);
      list_places(places, e, pass);
      list_amx_tiles(tiles, e, b, pass);
      for (int64_t vectors = 1; vectors <= 2; ++vectors) list_steps(steps[vectors - 1], pass, b, layout, vectors);
      const int64_t count = static_cast<int64_t>(tiles.size());
      for (int64_t g = 0; g < layout.groups; ++g) {
        if (layout.steps() > 0)
          fill_limbs<LA>(limbs, b, line, e, pass.h, pass.w, {g * layout.sources, layout.sources}, source);
        const int64_t last = panels.count() * (part + 1) / blocks.parts;
        for (int64_t panel = panels.count() * part / blocks.parts; panel < last; ++panel) {
          const int vectors = panels.vectors(panel);
          const int64_t row = vectors * kTileSide, plane = vectors * kTileElements;
          if (packed == nullptr) weights.pack_panel(own_panel, g, panel);
          const uint16_t* of_panel = packed == nullptr ? own_panel : packed + layout.panel(g, panel);
          // The next panel comes from far away, and is fetched while this one is multiplied.
          const int64_t lines = panel + 1 < last && packed != nullptr ? 2 * layout.tile_size() / 32 : 0;
          const int64_t times = std::max<int64_t>((count + 1) / 2 * layout.steps(), 1);
          const int64_t of_step = (lines + times - 1) / times;
          ComingLines coming{reinterpret_cast<const char*>(of_panel + vectors * layout.tile_size()), of_step};
          for (int64_t i = 0; i < count; i += 2, coming.at += of_step * layout.steps() * 64) {
            const int64_t together = std::min<int64_t>(count - i, 2);
            const AmxPositions &one = tiles[i], &other = tiles[i + together - 1];
            amx_multiplier<Engine, LA, LB>(together, vectors)(
                {{limbs + one.start * b.pitch, limbs + other.start * b.pitch}, b.plane, b.pitch * pass.w.step},
                {of_panel, plane, kTileElements}, steps[vectors - 1].data(), layout.steps(), tile, coming);
            for (int64_t t = 0; t < together; ++t) {
              float* results = tile + t * kTileSide * row;
              const int64_t rows = gather_rows(results, row, tiles[i + t].mask);
              if (!all_finite(results, rows * row)) finite = false;
              epilogue(results, vectors, &places[tiles[i + t].first], rows, g, panel * panels.kWidth,
                       panels.used(panel));
            }
          }
        }
      }
    }
  });
  return finite;
}

}  // namespace film::FILM_ISA
