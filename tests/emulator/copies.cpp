#include "copies.h"

#include <cstring>

namespace film::emulator {

// Read at once, so that an address outside a tensor is found on this line of the kernel, and kept from everybody: even
// what was at the destination is gone, as a reader that is still there must not count on it.
void Copies::issue(void* to, const void* from, int bytes, bool valid) {
  Copy copy{to, bytes, {}};
  if (valid) std::memcpy(copy.data, from, bytes);
  std::memset(to, kPoison, bytes);
  copies_.push_back(copy);
}

void Copies::wait(size_t groups_left) {
  if (groups_.size() <= groups_left) return;
  const size_t groups = groups_.size() - groups_left, landed = groups_[groups - 1];
  for (size_t i = 0; i < landed; ++i) std::memcpy(copies_[i].to, copies_[i].data, copies_[i].bytes);
  copies_.erase(copies_.begin(), copies_.begin() + landed);
  groups_.erase(groups_.begin(), groups_.begin() + groups);
  for (size_t& end : groups_) end -= landed;
}

void Copies::clear() {
  copies_.clear();
  groups_.clear();
}

}  // namespace film::emulator
