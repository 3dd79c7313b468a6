// How grad_weight.cpp's work is cut: by shapes alone, never by the number of threads, so that every run gives the same
// bits.
#pragma once

#include "blocks.h"
#include "unit_sums.h"

namespace film::FILM_ISA {

struct GradWeightPlan {
  // Positions: units, which are blocks of one sample's, and splits of them, each with a dW of its own.
  Blocks units;
  int64_t splits;
  int64_t chain;  // positions that are added in one chain

  // Output channels of a group: how many there are with those that fill up the last register tile, how many of them
  // make a task's block, and how many blocks.
  int64_t padded, block, blocks;
  // The same for the source channels of a group.
  int64_t source_block, source_blocks;

  // Elements from one output channel to the next in a task's W and dW.
  int64_t weight_row;
  // Whether the products (kw, c) of one kernel row are one stretch: side by side in a strip.
  bool row_is_one_stretch;

  // Elements of a unit's strip and of its u, and how many units a task has at hand.
  int64_t strip, u, units_at_hand;

  // What is summed together: the units of a split, for a block of a group's output channels (`used` that there are,
  // `channels` with those that fill up a register tile) and a block of its source channels.
  struct Task {
    int64_t split, group;
    int64_t first, channels, used;
    int64_t source_block, first_source, sources;
  };

  int64_t tasks(const Problem& p) const { return splits * p.groups * blocks * source_blocks; }

  Task task(const Problem& p, int64_t number) const {
    Task task;
    task.source_block = number % source_blocks;
    const int64_t block_number = number / source_blocks % blocks, rest = number / source_blocks / blocks;
    task.group = rest % p.groups;
    task.split = rest / p.groups;
    task.first = block_number * block;
    task.channels = std::min(block, padded - task.first);
    task.used = std::min(task.channels, p.group_out() - task.first);
    task.first_source = task.source_block * source_block;
    task.sources = std::min(source_block, p.group_in() - task.first_source);
    return task;
  }
};

// The most channels of one task. Larger blocks load each tensor less often, which is most of the work beside the
// products where there is one kernel tap; but the task's parts of W and dW should stay in L2.
struct MostChannels {
  int64_t out, in;
};
inline MostChannels most_channels(int64_t taps) {
  constexpr int64_t kMostProducts = 1200;
  return taps == 1 ? MostChannels{kMostChannels, 384} : MostChannels{64, std::max<int64_t>(kMostProducts / taps, 48)};
}

template <class A>
GradWeightPlan plan_grad_weight(const Problem& p, const Taps& h, const Taps& w) {
  constexpr int64_t kUnitPositions = 256;      // of one unit, at most: a row may be cut, rows are put together
  constexpr int64_t kTasks = 32;               // aimed at, so that many cores have work,
  constexpr int64_t kSplitPositions = 512;     // but a split has its own dW, which pays for so many positions only,
  constexpr int64_t kFewPositions = 192;       // or for so many where dW has
  constexpr int64_t kSmallWeight = 64 << 10;   // no more elements
  constexpr int64_t kBytesAtHand = 320 << 10;  // of strips and u: they stay in L2
  constexpr int64_t kLine = 64 / sizeof(A);    // elements of a cache line
  const auto parts = [](int64_t total, int64_t size) { return (total + size - 1) / size; };
  const int64_t taps = p.h.kernel * p.w.kernel, weights = p.out_channels * taps * p.group_in();
  const MostChannels most = most_channels(taps);
  GradWeightPlan plan;

  const int64_t columns = share_evenly(p.w.out, kUnitPositions);
  const int64_t rows = p.w.out <= kUnitPositions ? share_evenly(p.h.out, kUnitPositions / p.w.out) : 1;
  plan.units = blocks_of(1, rows, columns, p.batch, h, w);

  plan.padded = round_up(p.group_out(), kGradRows);
  plan.block = round_up(share_evenly(plan.padded, most.out), kGradRows);
  plan.blocks = parts(plan.padded, plan.block);
  const int64_t even = share_evenly(p.group_in(), most.in);
  plan.source_block = even == p.group_in() ? even : round_up(even, kGradVectors * kLanes<A>);
  plan.source_blocks = parts(p.group_in(), plan.source_block);
  plan.row_is_one_stretch = w.consecutive() && plan.source_blocks == 1;
  // An odd number of cache lines, so that the rows of a tile do not fall into the same cache sets.
  plan.weight_row = parts(taps * plan.source_block, kLine) / 2 * 2 * kLine + kLine;

  const int64_t tasks = plan.blocks * plan.source_blocks * p.groups;
  const int64_t least_positions = weights <= kSmallWeight ? kFewPositions : kSplitPositions;
  const int64_t units = plan.units.blocks();
  plan.splits = std::clamp<int64_t>(std::min(kTasks / tasks, p.positions() / least_positions), 1, units);
  plan.chain =
      p.positions() < kSplitPositions ? 16 : 32;  // of few positions, a longer chain would lose too many digits

  plan.strip = h.extent(rows) * w.extent(columns) * plan.source_block;
  plan.u = rows * columns * plan.block;
  const int64_t bytes = (plan.strip + plan.u) * static_cast<int64_t>(sizeof(A));
  plan.units_at_hand = std::clamp<int64_t>(kBytesAtHand / bytes, 1, parts(units, plan.splits));
  return plan;
}

}  // namespace film::FILM_ISA
