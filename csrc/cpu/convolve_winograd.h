// What convolve does, by Winograd's filtering (winograd.h), in one of three orders.
//
// Block by block, everything of a block stays in L2, and all weights are read once for each block. Those of wide layers
// are many times as long as L2, and their tiles so long that a block has few of them: 512 channels have 25 MB of
// weights at all points, and 10 tiles a block. There it is point by point: all tiles are transformed, then the products
// of one point after another are made for all of them, then all results; and the weights are read once.
//
// Where such a layer has few positions, even that is most of the work: each weight is written and read for a few
// products. There it is panel by panel: all tiles are transformed, and then a thread makes the weights of a panel and
// of some source channels, which stay in L2, and multiplies all tiles by them before it makes the next ones.
//
// In any order each product is the same sum, in the same order.
#pragma once

#include <atomic>

#include "winograd.h"

namespace film::FILM_ISA {

// One convolution by tiles T: what is done with a block of it.
template <class T, class Source, class Epilogue>
struct WinogradConvolution {
  const PointTile& tile;
  const Pass<float>& pass;
  WinogradWeights<T>& weights;
  int64_t batch, source_channels;
  Panels<float> panels;  // of a group
  const Source& source;
  const Epilogue& epilogue;

  const Blocks blocks = plan_winograd_blocks<T>(pass, batch, source_channels);
  const Pieces<T> pieces{static_cast<int64_t>(pass.h.offset.size()), static_cast<int64_t>(pass.w.offset.size())};
  const TileStacks most{tile, {0, blocks.samples, 0, blocks.rows, 0, blocks.columns}, pieces, source_channels};

  // Elements of a block's transformed tiles, and of its products of one panel, at most.
  int64_t transformed_size() const { return T::kPoints * most.point(); }
  int64_t products_size() const { return T::kPoints * most.result_point(panels.kWidth); }
  int64_t strip_size() const {
    return blocks.samples * pass.h.extent(blocks.rows) * pass.w.extent(blocks.columns) * source_channels;
  }

  Extent extent(int64_t block) const { return extent_of(blocks, pass, batch, block); }
  TileStacks layout(const Extent& e) const { return {tile, whole_tiles<T>(e), pieces, source_channels}; }

  void transform(float* transformed, float* strip, const Extent& e, int64_t g) const {
    const Extent whole = whole_tiles<T>(e);
    fill_strip(strip, whole, pass.h, pass.w, {g * source_channels, source_channels}, source);
    // The last vector of the last position reads on past it.
    const int64_t positions = whole.samples * pass.h.extent(whole.rows) * pass.w.extent(whole.columns);
    std::memset(strip + positions * source_channels, 0, kVectorBytes);
    transform_tiles<T>(transformed, layout(e), strip, whole, pieces, source_channels);
    layout(e).clear_empty_places(transformed, T::kPoints);
  }

  // Adds to a panel's products at a point those of a range of source channels, whose weights are in `some`.
  void multiply(float* products, const float* transformed, const TileStacks& layout, int64_t panel, int64_t point,
                const ChannelRange& sources, const typename WinogradWeights<T>::Some& some) const {
    const int64_t width = panels.vectors(panel) * kLanes<float>;
    const auto multiply = tile.multiplier(panels.used(panel), layout.tiles);
    transformed += point * layout.point() + layout.chunk(sources.first);
    products += point * layout.result_point(width);
    for (int64_t stack = 0; stack < layout.result_stacks(); ++stack)
      for (int64_t piece = 0; piece < pieces.count(); ++piece)
        multiply(sources.count,
                 transformed + piece % pieces.along_w * layout.copy() +
                     (stack + piece / pieces.along_w * layout.band_stacks) * layout.stack(),
                 some.at + point * some.point + piece * some.piece, products + stack * layout.tiles * width,
                 sources.first == 0 && piece == 0);
  }

  // All of them, with the weights that are kept.
  void multiply_all(float* products, const float* transformed, const TileStacks& layout, int64_t g, int64_t panel,
                    int64_t point) const {
    multiply(products, transformed, layout, panel, point, {0, source_channels}, weights.at(g, panel));
  }

  // Returns whether all results are finite.
  bool finish(float* results, std::vector<Place>& places, const float* products, const Extent& e, int64_t g,
              int64_t panel) const {
    const int vectors = panels.vectors(panel);
    const int64_t width = vectors * kLanes<float>, count = list_places(places, e, pass);
    const bool finite = gather_results<T>(tile, results, products, layout(e), e, width);
    for (int64_t first = 0; first < count; first += kTileRows)
      epilogue(results + first * width, vectors, &places[first], std::min<int64_t>(kTileRows, count - first), g,
               panel * panels.kWidth, panels.used(panel));
    return finite;
  }

  bool block_by_block(int64_t groups) const {
    weights.make();
    std::atomic<bool> finite{true};
    parallel(blocks.blocks(), [&](int64_t begin, int64_t end) {
      Scratch<float> strip(strip_size()), transformed(transformed_size()), products(products_size());
      Scratch<float> results(blocks.positions() * panels.kWidth);
      std::vector<Place> places(blocks.positions());
      for (int64_t block = begin; block < end && finite; ++block) {
        const Extent e = extent(block);
        const TileStacks stacks = layout(e);
        for (int64_t g = 0; g < groups; ++g) {
          transform(transformed, strip, e, g);
          for (int64_t panel = 0; panel < panels.count(); ++panel) {
            for (int64_t point = 0; point < T::kPoints; ++point)
              multiply_all(products, transformed, stacks, g, panel, point);
            if (!finish(results, places, products, e, g, panel)) finite = false;
          }
        }
      }
    });
    return finite;
  }

  // `together` blocks at a time.
  bool point_by_point(int64_t groups, int64_t together) const {
    weights.make();
    Scratch<float> transformed(together * transformed_size());
    Scratch<float> products(together * panels.count() * products_size());
    std::atomic<bool> finite{true};
    for (int64_t first = 0; first < blocks.blocks() && finite; first += together) {
      const int64_t count = std::min(together, blocks.blocks() - first);
      const auto products_of = [&](int64_t i, int64_t panel) {
        return products + (i * panels.count() + panel) * products_size();
      };
      for (int64_t g = 0; g < groups; ++g) {
        parallel(count, [&](int64_t begin, int64_t end) {
          Scratch<float> strip(strip_size());
          for (int64_t i = begin; i < end; ++i)
            transform(transformed + i * transformed_size(), strip, extent(first + i), g);
        });
        // A thread has panels of its own, those whose weights it has transformed, and a share of their points where
        // there are more threads. A point's tiles stay near while it goes through its panels.
        const int64_t shares = (thread_count() + panels.count() - 1) / panels.count();
        parallel(panels.count() * shares, [&](int64_t begin, int64_t end) {
          for (int64_t point = 0; point < T::kPoints; ++point)
            for (int64_t at = begin; at < end; ++at)
              for (int64_t i = 0; i < count && point % shares == at % shares; ++i)
                multiply_all(products_of(i, at / shares), transformed + i * transformed_size(),
                             layout(extent(first + i)), g, at / shares, point);
        });
        parallel(panels.count() * count, [&](int64_t begin, int64_t end) {
          Scratch<float> results(blocks.positions() * panels.kWidth);
          std::vector<Place> places(blocks.positions());
          for (int64_t at = begin; at < end && finite; ++at) {
            const int64_t panel = at / count, i = at % count;
            if (!finish(results, places, products_of(i, panel), extent(first + i), g, panel)) finite = false;
          }
        });
      }
    }
    return finite;
  }

  bool panel_by_panel(int64_t groups) const {
    const int64_t count = blocks.blocks();
    Scratch<float> transformed(count * transformed_size());
    std::atomic<bool> finite{true};
    weights.with_maker([&](const auto& maker) {
      for (int64_t g = 0; g < groups && finite; ++g) {
        parallel(count, [&](int64_t begin, int64_t end) {
          Scratch<float> strip(strip_size());
          for (int64_t i = begin; i < end; ++i) transform(transformed + i * transformed_size(), strip, extent(i), g);
        });
        parallel(panels.count(), [&](int64_t begin, int64_t end) {
          Scratch<float> made(weights.some_size()), taps(weights.taps_size());
          Scratch<float> products(count * products_size()), results(blocks.positions() * panels.kWidth);
          std::vector<Place> places(blocks.positions());
          for (int64_t panel = begin; panel < end && finite; ++panel) {
            const auto some = weights.some_in(made, panel);
            for (int64_t s0 = 0; s0 < source_channels; s0 += kSourcesTogether) {
              const ChannelRange sources{s0, std::min(kSourcesTogether, source_channels - s0)};
              maker(some, g, panel, sources, taps);
              for (int64_t point = 0; point < T::kPoints; ++point)
                for (int64_t i = 0; i < count; ++i)
                  multiply(products + i * products_size(), transformed + i * transformed_size(), layout(extent(i)),
                           panel, point, sources, some);
            }
            for (int64_t i = 0; i < count; ++i)
              if (!finish(results, places, products + i * products_size(), extent(i), g, panel)) finite = false;
          }
        });
      }
    });
    return finite;
  }

  // Whether panel by panel each thread has less to read and write. Of several pieces, each of which is summed over all
  // source channels before the next one, some channels would be another order.
  bool suits_panels() const {
    constexpr int64_t kNearBytes = 1 << 20;       // weights of so many bytes stay near
    constexpr int64_t kProductBytes = 768 << 10;  // and products of so many
    constexpr int64_t kPasses = 3;  // weights that are kept are written, for which a line is read first, and read
    const int64_t threads = thread_count(), weight_bytes = weights.elements() * sizeof(float);
    if (!weights.are_own() || weight_bytes <= kNearBytes || panels.count() < threads || pieces.count() > 1)
      return false;
    const int64_t product_bytes = blocks.blocks() * products_size() * sizeof(float);
    const int64_t tile_bytes = blocks.blocks() * transformed_size() * sizeof(float);
    const int64_t panels_of_thread = (panels.count() + threads - 1) / threads;
    return product_bytes <= kProductBytes && panels_of_thread * tile_bytes <= kPasses * weight_bytes / threads;
  }

  // How many blocks go point by point together; 0 where block by block each thread has less to read and write beyond
  // L2.
  int64_t blocks_together() const {
    constexpr int64_t kNearBytes = 1 << 20;   // weights of so many bytes stay near
    constexpr int64_t kMostBytes = 32 << 20;  // of tiles and products together
    constexpr int64_t kPasses = 3;  // tiles and products are written, for which a line is read first, and read
    const int64_t weight_bytes = weights.elements() * sizeof(float), threads = thread_count();
    if (weight_bytes <= kNearBytes) return 0;
    const int64_t block_bytes = (transformed_size() + panels.count() * products_size()) * sizeof(float);
    const int64_t together = std::clamp<int64_t>(kMostBytes / block_bytes, 1, blocks.blocks());
    const int64_t rounds = (blocks.blocks() + together - 1) / together;
    // Block by block, what another thread has just transformed has to come from there, which takes about twice as long.
    const int64_t from_others = weights.are_own() && threads > 1 ? threads : 0;
    const double by_points = rounds * weight_bytes + kPasses * blocks.blocks() * block_bytes;
    const double by_blocks = (blocks.blocks() + from_others) * weight_bytes;
    return by_points / threads < by_blocks / std::min(blocks.blocks(), threads) ? together : 0;
  }
};

// Does what convolve does, with tiles T. Returns whether all results are finite; where they are not, the epilogue has
// not run for all of them.
template <class T, class Source, class Epilogue>
bool convolve_winograd(const PointTile& tile, const Pass<float>& pass, WinogradWeights<T>& weights, int64_t batch,
                       int64_t groups, int64_t source_channels, int64_t channels, const Source& source,
                       const Epilogue& epilogue) {
  const WinogradConvolution<T, Source, Epilogue> all{tile,       pass,   weights, batch, source_channels,
                                                     {channels}, source, epilogue};
  if (all.suits_panels()) return all.panel_by_panel(groups);
  const int64_t together = all.blocks_together();
  return together == 0 ? all.block_by_block(groups) : all.point_by_point(groups, together);
}

}  // namespace film::FILM_ISA
