#include "processor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "intrinsics.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace film::emulator {

__thread Processor* running;

Processor& Processor::of_this_thread() {
  // Elsewhere in memory: a library that is loaded late finds little room for a thread's own variables.
  static thread_local const std::unique_ptr<Processor> processor(new Processor);
  return *processor;
}

bool Processor::run(const Launch& launch, uint3 block, uint64_t seed) {
  running = this;
  prepare(launch, block, seed);
  lane_ = choose();
  threadIdx = lane_->index;
  host_.switch_to(lane_->fibre);
  if (failed_)  // the lanes are somewhere in the kernel, and never come back from there
    for (auto& lane : lanes_) lane->fibre.reset(run_lanes, lane->number);
  return !failed_;
}

void Processor::prepare(const Launch& launch, uint3 block, uint64_t seed) {
  launch_ = &launch;
  block_ = blockIdx = block;
  blockDim = launch.block;
  gridDim = launch.grid;
  random_ = Random(seed);
  threads_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  warp_count_ = (threads_ + kWarp - 1) / kWarp;
  ended_ = at_barrier_ = 0;
  runnable_ = 0;
  failed_ = false;
  if (shared_ == nullptr || shared_bytes_ != launch.shared_bytes) {
    void* memory;
    if (posix_memalign(&memory, 128, launch.shared_bytes) != 0) std::abort();
    shared_.reset(memory);
    shared_bytes_ = launch.shared_bytes;
  }
  std::memset(shared_.get(), kPoison, shared_bytes_);

  while (static_cast<int>(lanes_.size()) < threads_) {
    lanes_.push_back(std::make_unique<Lane>());
    lane_pointers_.push_back(lanes_.back().get());
    lanes_.back()->number = static_cast<int>(lanes_.size() - 1) % kWarp;
    lanes_.back()->fibre.reset(run_lanes, lanes_.size());
  }
  for (int i = 0; i < threads_; ++i) {
    Lane& lane = *lanes_[i];
    lane.warp = &warps_[i / kWarp];
    const unsigned thread = static_cast<unsigned>(i), x = launch.block.x, y = launch.block.y;
    lane.index = {thread % x, thread / x % y, thread / (x * y)};
    lane.waits_at = nullptr;
    lane.copies.clear();
  }
  mix();
  for (int w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    warp.lanes = lane_pointers_.data() + w * kWarp;
    warp.number = w;
    warp.count = std::min(kWarp, threads_ - w * kWarp);
    warp.at_collective = warp.at_barrier = warp.ended = 0;
    warp.arrived = 0;
    warp.log.clear();
    begin(warp);
  }
  warp_ = nullptr;
}

// A fibre serves one thread of each block, one block after another.
void Processor::run_lanes() {
  for (;;) {
    running->launch_->invoke(running->launch_->arguments);
    running->end_lane();
  }
}

void Processor::end_lane() {
  Lane& lane = *lane_;
  Warp& warp = *lane.warp;
  if (lane.copies.pending() > 0) {
    message_ = where() + ": ends with copies (cp.async) that it never waited for";
    abandon();
  }
  warp.ended |= 1u << lane.number;
  lane.waits_at = nullptr;
  if (__builtin_popcount(warp.ended) == warp.count && !warp.log.empty()) warp.log.count(counts_);
  if (++ended_ == threads_) {
    lane.fibre.switch_to(host_);
  } else {
    stop();
  }
}

void Processor::begin(Warp& warp) {
  const uint32_t bits = random_.below(1024);
  warp.step = bits | 1;  // odd: every lane once
  warp.first = bits >> 5;
  warp.position = 0;
  runnable_ |= 1u << warp.number;
}

// Races need one warp far ahead of another, or many turns: from barrier to barrier it is one or the other.
void Processor::mix() {
  static constexpr uint32_t kStay[] = {8, 7, 4, 0};
  stay_ = kStay[random_.below(4)];
}

Lane* Processor::choose() {
  for (;;) {
    if (warp_ == nullptr) {
      if (runnable_ == 0) return nullptr;
      uint32_t left = runnable_;
      for (uint32_t skip = random_.below(__builtin_popcount(runnable_)); skip > 0; --skip) left &= left - 1;
      warp_ = &warps_[__builtin_ctz(left)];
    }
    while (warp_->position < kWarp) {
      const int lane = (warp_->position++ * warp_->step + warp_->first) % kWarp;
      if (lane < warp_->count) return warp_->lanes[lane];
    }
    runnable_ &= ~(1u << warp_->number);
    warp_ = nullptr;
  }
}

void Processor::stop() {
  Lane& self = *lane_;
  Lane* next = choose();
  if (next == nullptr) {
    message_ = why_nobody_runs();
    abandon();
  }
  if (next == &self) return;
  lane_ = next;
  threadIdx = next->index;
  self.fibre.switch_to(next->fibre);
}

void Processor::barrier(Site site) {
  Lane& lane = *lane_;
  Warp& warp = *lane.warp;
  lane.waits_at = "__syncthreads";
  lane.site = site;
  if (at_barrier_ == 0) {
    barrier_site_ = site;
  } else if (!same(barrier_site_, site)) {
    message_ =
        where() + ": __syncthreads at " + text(site) + ", while others wait in the one at " + text(barrier_site_);
    abandon();
  }
  warp.at_barrier |= 1u << lane.number;
  if (__builtin_popcount(warp.at_barrier) == warp.count && !warp.log.empty()) warp.log.count(counts_);
  if (++at_barrier_ == threads_) {
    at_barrier_ = 0;
    mix();
    for (int w = 0; w < warp_count_; ++w) {
      warps_[w].at_barrier = 0;
      begin(warps_[w]);
    }
    warp_ = nullptr;
  }
  stop();
}

void Processor::collective(const char* name, Site site, Perform perform, void* slot) {
  Lane& lane = *lane_;
  Warp& warp = *lane.warp;
  lane.waits_at = name;
  lane.site = site;
  if (warp.arrived == 0) {
    warp.perform = perform;
    warp.gathered.site = site;
  } else if (warp.perform != perform || !same(warp.gathered.site, site)) {
    const Lane& other = *warp.lanes[__builtin_ctz(warp.at_collective)];
    message_ = where() + ": the warp is divided: " + name + " at " + text(site) + ", while others wait in " +
               other.waits_at + " at " + text(other.site);
    abandon();
  }
  warp.at_collective |= 1u << lane.number;
  warp.gathered.slots[lane.number] = slot;
  if (++warp.arrived == warp.count) {
    if (!warp.log.empty()) warp.log.count(counts_);
    warp.gathered.lanes = warp.count;
    perform(warp.gathered);
    warp.arrived = 0;
    warp.at_collective = 0;
    begin(warp);
    if (random_.below(8) >= stay_) warp_ = nullptr;
  }
  stop();
}

uint32_t Processor::shared_offset(const void* address, int bytes, const char* what, Site site) {
  const auto at = reinterpret_cast<uintptr_t>(address), base = reinterpret_cast<uintptr_t>(shared_.get());
  if (at < base || at + bytes > base + shared_bytes_)
    emulator::fault(site, "%s of %d bytes outside shared memory: offset %lld of %zu bytes", what, bytes,
                    static_cast<long long>(at - base), shared_bytes_);
  if (at % bytes != 0)
    emulator::fault(site, "%s of %d bytes at an address that is not a multiple: offset %lld", what, bytes,
                    static_cast<long long>(at - base));
  return static_cast<uint32_t>(at - base);
}

}  // namespace film::emulator
