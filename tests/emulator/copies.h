// The asynchronous copies of one thread: on their way until waited for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace film::emulator {

constexpr int kPoison = 0xff;  // NaN in every float format

class Copies {
 public:
  void issue(void* to, const void* from, int bytes, bool valid);
  void commit() { groups_.push_back(copies_.size()); }
  void wait(size_t groups_left);
  size_t pending() const { return copies_.size(); }
  void clear();

 private:
  struct Copy {
    void* to;
    int bytes;
    unsigned char data[16];
  };
  std::vector<Copy> copies_;
  std::vector<size_t> groups_;  // where each ends
};

}  // namespace film::emulator
