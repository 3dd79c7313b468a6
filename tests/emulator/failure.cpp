// A block that cannot go on, and what to say about it.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "processor.h"

namespace film::emulator {

std::string text(Site site) {
  const char* name = std::strrchr(site.file, '/');
  return std::string(name != nullptr ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

void Processor::fault(Site site, const char* what) {
  message_ = where() + " at " + text(site) + ": " + what;
  abandon();
}

void Processor::abandon() {
  failed_ = true;
  lane_->fibre.switch_to(host_);
  std::abort();
}

std::string Processor::where() const {
  char text[160];
  std::snprintf(text, sizeof(text), "block (%u, %u, %u), warp %d, thread (%u, %u, %u)", block_.x, block_.y, block_.z,
                lane_->warp->number, lane_->index.x, lane_->index.y, lane_->index.z);
  return text;
}

// Every lane of every warp: where it waits, or that it has ended.
std::string Processor::why_nobody_runs() const {
  char block[80];
  std::snprintf(block, sizeof(block), "block (%u, %u, %u): nobody can go on", block_.x, block_.y, block_.z);
  std::string all = block;
  for (int w = 0; w < warp_count_; ++w) {
    const Warp& warp = warps_[w];
    const auto state = [&](int i) {
      if (warp.ended >> i & 1) return std::string("ended");
      return "in " + std::string(warp.lanes[i]->waits_at) + " at " + text(warp.lanes[i]->site);
    };
    for (int i = 0, end; i < warp.count; i = end) {
      for (end = i + 1; end < warp.count && state(end) == state(i);) ++end;
      all += "\n  warp " + std::to_string(w) + ", lanes " + std::to_string(i) + "-" + std::to_string(end - 1) + ": " +
             state(i);
    }
  }
  return all;
}

}  // namespace film::emulator
