// Counts what shared memory's 32 banks of 4 bytes make of the accesses of a warp.
#pragma once

#include <cstdint>
#include <vector>

#include "emulator.h"

namespace film::emulator {

constexpr int kAccessKinds = 4;

struct Count {
  Access kind;
  Site site;
  uint64_t wavefronts = 0;
  uint64_t conflicts = 0;  // wavefronts above one for each phase

  bool is(Access k, Site s) const { return kind == k && same(site, s); }
};

// By site, for one host thread.
class Counts {
 public:
  void add(Access kind, Site site, int wavefronts);
  void publish();  // adds all to what the program reads, and forgets them

 private:
  std::vector<Count> counts_;
  size_t last_ = 0;
};

// Wavefronts of `count` accesses of 16 bytes that one phase makes together, or of 4 bytes.
int wavefronts_16(const uint32_t* offsets, int count);
int wavefronts_4(const uint32_t* offsets, int count);

// The accesses of a warp that are no collectives, until the next collective.
class AccessLog {
 public:
  void note(Access kind, int lane, uint32_t offset, int bytes, Site site);
  void count(Counts& counts);  // and begins anew
  void clear() { used_ = 0; }
  bool empty() const { return used_ == 0; }

 private:
  struct Instruction {
    uint32_t lanes;
    uint32_t offsets[kWarp];
  };
  struct Line {
    Count what;
    int bytes;
    uint16_t seen[kWarp];  // how many times each lane has been here
    std::vector<Instruction> instructions;
    size_t used;
  };
  Line& find(Access kind, int bytes, Site site);

  std::vector<Line> lines_;
  size_t used_ = 0, last_ = 0;
};

}  // namespace film::emulator
