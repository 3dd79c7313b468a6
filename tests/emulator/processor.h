// Runs a block: its threads are fibres, and one goes on until it has to wait for others.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "banks.h"
#include "copies.h"
#include "emulator.h"
#include "fibre.h"

namespace film::emulator {

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }

 private:
  uint64_t state_;
};

struct Warp;

struct Lane {
  Fibre fibre;
  Warp* warp;
  int number;  // in the warp
  uint3 index;
  const char* waits_at;  // what, where it waits
  Site site;
  Copies copies;
};

struct Warp {
  Lane* const* lanes;
  int number, count;
  uint32_t at_collective, at_barrier, ended;  // one bit for each lane
  int arrived;                                // at the collective
  Perform perform;
  Gathered gathered;
  int position;  // in the order of lanes, (position * step + first) % 32
  uint32_t step, first;
  AccessLog log;
};

class Processor {
 public:
  static Processor& of_this_thread();  // made when first asked for

  // False where the block did not end as it should; the message then says why.
  bool run(const Launch& launch, uint3 block, uint64_t seed);
  const std::string& message() const { return message_; }
  Counts& counts() { return counts_; }

  // For the running lane.
  Lane& lane() { return *lane_; }
  void* shared_memory() { return shared_.get(); }
  uint32_t shared_offset(const void* address, int bytes, const char* what, Site site);
  void barrier(Site site);
  void collective(const char* name, Site site, Perform perform, void* slot);
  [[noreturn]] void fault(Site site, const char* what);

 private:
  Processor() { host_.adopt_host(); }  // the stack of the thread that makes it

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  void prepare(const Launch& launch, uint3 block, uint64_t seed);
  [[noreturn]] static void run_lanes();
  void end_lane();
  void begin(Warp& warp);  // all its lanes can run
  void mix();
  Lane* choose();
  void stop();                  // the running lane cannot go on; returns when it can
  [[noreturn]] void abandon();  // the block, for the reason in message_; nothing that owns memory may be on the stack
  std::string where() const;
  std::string why_nobody_runs() const;

  Fibre host_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Lane*> lane_pointers_;
  Warp warps_[32];
  const Launch* launch_ = nullptr;
  uint3 block_{};
  int threads_ = 0, warp_count_ = 0, ended_ = 0, at_barrier_ = 0;
  Site barrier_site_{};
  uint32_t runnable_ = 0;  // one bit for each warp that has lanes to run
  uint32_t stay_ = 0;      // how many times of 8 a warp goes on where others could
  Warp* warp_ = nullptr;
  Lane* lane_ = nullptr;
  Random random_;
  std::unique_ptr<void, Free> shared_;
  size_t shared_bytes_ = 0;
  Counts counts_;
  std::string message_;
  bool failed_ = false;
};

// The processor of this host thread, while it runs a block.
extern __thread Processor* running;

}  // namespace film::emulator
