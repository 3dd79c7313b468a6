// How the weight gradient of a depthwise convolution is cut: by shapes alone, so that every run gives the same bits.
#pragma once

#include "../problem.h"
#include "tile.h"

namespace film::FILM_ISA {

inline int64_t parts_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

struct DepthwiseUnits {
  int64_t rows, columns;     // of a unit, at most
  int64_t along_h, along_w;  // units of a sample
  int64_t block, blocks;     // vectors of channels of a task, and how many such blocks
  int64_t splits;            // of the units, for each block

  int64_t of_sample() const { return along_h * along_w; }
};

template <class A>
DepthwiseUnits plan_depthwise_units(const Problem& p) {
  constexpr int64_t kUnitPositions = 512, kBlockChannels = 64;
  constexpr int64_t kTasks = 32;  // so that many cores have work
  DepthwiseUnits plan;
  plan.columns = share_evenly(p.w.out, kUnitPositions);
  plan.rows = share_evenly(p.h.out, std::max<int64_t>(kUnitPositions / plan.columns, 1));
  plan.along_h = parts_of(p.h.out, plan.rows), plan.along_w = parts_of(p.w.out, plan.columns);
  const int64_t vectors = parts_of(p.out_channels, kLanes<A>);
  plan.block = share_evenly(vectors, kBlockChannels / kLanes<A>);
  plan.blocks = parts_of(vectors, plan.block);
  plan.splits = std::min(p.batch * plan.of_sample(), parts_of(kTasks, plan.blocks));
  return plan;
}

}  // namespace film::FILM_ISA
