// The convolution in planes (planes.h) that forward and grad_input share: register tiles of a few output channels x
// vectors of columns, which stay in registers over all products and then go to an epilogue.
#pragma once

#include "planes.h"
#include "tile.h"

namespace film::FILM_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPlaneChannels = 12;  // output channels of a register tile, at most: 24 sums of 32 registers
#else
constexpr int kPlaneChannels = 6;  // 12 of 16
#endif
// Tiles are two vectors of columns wide, and up to so many channels also four, which takes as many registers.
constexpr int kFewPlaneChannels = kPlaneChannels / 2, kMostPlaneVectors = 4;

// out[K][V * lanes] = sum over products of weights[product][K] * planes, in chains of kChunk products.
template <class A, int K, int V>
void multiply_planes(const int64_t* offsets, int64_t products, const A* base, const A* __restrict weights,
                     A* __restrict out) {
  for (int64_t begin = 0; begin == 0 || begin < products; begin += kChunk) {
    TileSums<A, K, V> sums;
    sums.clear();
    const int64_t end = std::min(begin + kChunk, products);
    for (int64_t r = begin; r < end; ++r, weights += K) {
      const TileLanes<A, V> x(base + offsets[r]);
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) sums.add(k, weights[k], x);
    }
    sums.put(out, begin == 0);
  }
}

template <class A>
using MultiplyPlanes = void (*)(const int64_t*, int64_t, const A*, const A*, A*);

// The tile of so many channels and vectors of columns.
template <class A, int K = 1>
MultiplyPlanes<A> planes_multiplier(int64_t channels, int vectors) {
  if constexpr (K > kPlaneChannels) {
    return nullptr;
  } else {
    if (channels != K) return planes_multiplier<A, K + 1>(channels, vectors);
    if constexpr (K <= kFewPlaneChannels)
      if (vectors == kMostPlaneVectors) return multiply_planes<A, K, kMostPlaneVectors>;
    return multiply_planes<A, K, 2>;
  }
}

// How a pass is cut. A task is some rows of one sample, or of some of their columns where rows are very long.
struct PlanePlan {
  int64_t channels;  // of a register tile, at most
  int vectors;       // of columns of a register tile
  int64_t columns;   // of a task, at most
  int64_t cuts;      // tasks side by side in a row
  int64_t rows;      // of a task, at most
  int64_t blocks;    // tasks below one another in a sample
  PlaneShape shape;  // of a task's planes
};

template <class A>
PlanePlan plan_planes(const Pass<A>& pass, const PassSizes& sizes) {
  constexpr int64_t kPlaneBytes = 256 * 1024;  // of a task's planes: they stay in L2
  constexpr int64_t kRowBytes = 4 << 20;       // of planes for one row, which is cut where it takes more
  constexpr int64_t kTasksOfThread = 4;        // at least, where there are so many rows, so that no thread waits long
  constexpr int64_t kMostRows = 64;
  PlanePlan plan;
  plan.channels = share_evenly(sizes.channels, kPlaneChannels);
  // Four vectors load each weight for twice as many products, but only where they fill up no more than a ninth more.
  const auto filled = [&](int64_t vectors) { return round_up(pass.w.count, vectors * kLanes<A>); };
  const bool wide = plan.channels <= kFewPlaneChannels && 9 * filled(kMostPlaneVectors) <= 10 * filled(2);
  plan.vectors = wide ? kMostPlaneVectors : 2;
  const auto bytes_of_row = [&](const Taps& w) {
    const int64_t row = plane_shape<A>(pass.h, w, 1, plan.vectors).row();
    return sizes.all_sources() * row * pass.h.step * static_cast<int64_t>(sizeof(A));
  };
  const int64_t parts = 1 + (bytes_of_row(pass.w) - 1) / kRowBytes;
  plan.columns = round_up((pass.w.count + parts - 1) / parts, plan.vectors * kLanes<A>);
  plan.cuts = (pass.w.count + plan.columns - 1) / plan.columns;
  const Taps widest = part_of(pass.w, 0, plan.columns);
  const int64_t tasks = kTasksOfThread * thread_count(), share = (sizes.batch * pass.h.count + tasks - 1) / tasks;
  const int64_t rows = std::min(kPlaneBytes / std::max<int64_t>(bytes_of_row(widest), 1), share);
  plan.rows = std::clamp<int64_t>(rows, 1, std::min(pass.h.count, kMostRows));
  plan.blocks = (pass.h.count + plan.rows - 1) / plan.rows;
  plan.shape = plane_shape<A>(pass.h, widest, plan.rows, plan.vectors);
  return plan;
}

// One pass over the destination, as in convolve.h, in planes. For each destination row and run of columns:
//   epilogue.begin(); then for some channels at a time epilogue(tile, vectors, run, channels); then epilogue.end(run)
// where the run is one of the destination. `weights` are packed by pack_plane_weights. Source and epilogue are copied
// for every thread.
template <class A, class Source, class Epilogue>
void convolve_planes(const Pass<A>& pass, const PassSizes& sizes, const Source& shared_source,
                     const Epilogue& shared_epilogue) {
  if (sizes.batch * pass.h.count * pass.w.count == 0) return;
  const PlanePlan plan = plan_planes(pass, sizes);
  const PlaneShape& shape = plan.shape;
  const int64_t width = plan.vectors * kLanes<A>;
  const std::vector<int64_t> offsets = plane_offsets(pass.h, pass.w, sizes.sources, shape);
  parallel(sizes.batch * plan.blocks * plan.cuts, [&](int64_t begin, int64_t end) {
    const Planes<A> planes(shape, sizes.all_sources(), part_of(pass.w, 0, plan.columns));
    Scratch<A> tile(kPlaneChannels * kMostPlaneVectors * kLanes<A>);
    Source source = shared_source;
    Epilogue epilogue = shared_epilogue;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / plan.cuts, first_w = task % plan.cuts * plan.columns;
      const int64_t n = block / plan.blocks, first_h = block % plan.blocks * plan.rows;
      const RowRange rows{n, first_h, std::min(plan.rows, pass.h.count - first_h)};
      const Taps w = part_of(pass.w, first_w, first_w + plan.columns);
      if (pass.products > 0) planes.fill(rows, pass.h, w, source);
      for (int64_t h = 0; h < rows.count; ++h)
        for (int64_t i = 0; i < w.count; i += width) {
          const int64_t at = h * pass.h.step * shape.row() + i;  // in each plane
          const ColumnRun run{n, pass.h.first + pass.h.spacing * (first_h + h),
                              pass.w.first + pass.w.spacing * (first_w + i), std::min(width, w.count - i),
                              pass.w.spacing};
          epilogue.begin();
          for (int64_t g = 0; g < sizes.groups; ++g) {
            const A* base = planes.of_channel(g * sizes.sources) + at;
            const A* weights = pass.weights[g];
            for (int64_t k = 0; k < sizes.channels; k += plan.channels) {
              const ChannelRange some{g * sizes.channels + k, std::min(plan.channels, sizes.channels - k)};
              planes_multiplier<A>(some.count, plan.vectors)(offsets.data(), pass.products, base, weights, tile);
              epilogue(static_cast<A*>(tile), plan.vectors, run, some);
              weights += pass.products * some.count;
            }
          }
          epilogue.end(run);
        }
    }
  });
}

// The weights as convolve_planes reads them: for each group and each of its tiles' channels, [product][channel].
// `transposed` as pack_weights has it.
template <class A, class T>
void pack_plane_weights(A* packed, Pass<A>& pass, const View& weight, const PassSizes& sizes, bool transposed) {
  const T* data = static_cast<const T*>(weight.data);
  const int64_t step = share_evenly(sizes.channels, kPlaneChannels);
  for (int64_t g = 0; g < sizes.groups; ++g) {
    pass.weights.push_back(packed);
    const T* of_group = data + g * (transposed ? sizes.sources : sizes.channels) * weight.n;
    for (int64_t k0 = 0; k0 < sizes.channels; k0 += step)
      for (int64_t s = 0; s < sizes.sources; ++s)
        for (int64_t kh : pass.h.kernel)
          for (int64_t kw : pass.w.kernel)
            for (int64_t k = k0; k < std::min(k0 + step, sizes.channels); ++k) {
              const int64_t at = transposed ? s * weight.n + k * weight.c : k * weight.n + s * weight.c;
              *packed++ = widen<A>(of_group[at + kh * weight.h + kw * weight.w]);
            }
  }
}

}  // namespace film::FILM_ISA
