#include "banks.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace film::emulator {

namespace {

const char* const kNames[kAccessKinds] = {"ldmatrix", "cp.async", "load", "store"};

// Never destroyed: a thread may publish, and the report be made, while the program ends.
struct Total {
  std::mutex mutex;
  std::vector<Count> counts;
};

Total& total() {
  static Total* const all = [] {
    const char* wanted = std::getenv("FILM_EMULATOR_REPORT");
    if (wanted != nullptr && *wanted != '\0' && *wanted != '0') std::atexit(film_emulator_report);
    return new Total;
  }();
  return *all;
}

uint64_t sum(const char* kind, uint64_t Count::* field) {
  Total& all = total();
  const std::lock_guard lock(all.mutex);
  uint64_t sum = 0;
  for (const Count& c : all.counts)
    if (std::strcmp(kNames[static_cast<int>(c.kind)], kind) == 0) sum += c.*field;
  return sum;
}

}  // namespace

void Counts::add(Access kind, Site site, int wavefronts) {
  if (last_ >= counts_.size() || !counts_[last_].is(kind, site)) {
    const auto found = std::find_if(counts_.begin(), counts_.end(), [&](const Count& c) { return c.is(kind, site); });
    last_ = found - counts_.begin();
    if (found == counts_.end()) counts_.push_back({kind, site});
  }
  counts_[last_].wavefronts += wavefronts;
  counts_[last_].conflicts += wavefronts - 1;
}

void Counts::publish() {
  Total& all = total();
  const std::lock_guard lock(all.mutex);
  for (const Count& c : counts_) {
    const auto is = [&](const Count& total) { return total.is(c.kind, c.site); };
    const auto found = std::find_if(all.counts.begin(), all.counts.end(), is);
    if (found == all.counts.end()) {
      all.counts.push_back(c);
    } else {
      found->wavefronts += c.wavefronts;
      found->conflicts += c.conflicts;
    }
  }
  counts_.clear();
}

// Two lanes that read the same word share it; 16 aligned bytes lie in four banks side by side.
int wavefronts_16(const uint32_t* offsets, int count) {
  int in_bank[8] = {};
  int most = 0;
  for (int i = 0; i < count; ++i) {
    const uint32_t mine = offsets[i] >> 4;
    bool shared = false;
    for (int j = 0; j < i; ++j) shared |= offsets[j] >> 4 == mine;
    if (!shared) most = std::max(most, ++in_bank[mine & 7]);
  }
  return most;
}

int wavefronts_4(const uint32_t* offsets, int count) {
  int in_bank[32] = {};
  int most = 0;
  for (int i = 0; i < count; ++i) {
    const uint32_t mine = offsets[i] >> 2;
    bool shared = false;
    for (int j = 0; j < i; ++j) shared |= offsets[j] >> 2 == mine;
    if (!shared) most = std::max(most, ++in_bank[mine & 31]);
  }
  return most;
}

AccessLog::Line& AccessLog::find(Access kind, int bytes, Site site) {
  if (last_ < used_ && lines_[last_].what.is(kind, site)) return lines_[last_];
  for (last_ = 0; last_ < used_; ++last_)
    if (lines_[last_].what.is(kind, site)) return lines_[last_];
  if (used_ == lines_.size()) lines_.emplace_back();
  Line& line = lines_[used_++];
  line.what = {kind, site};
  line.bytes = bytes;
  line.used = 0;
  std::fill(std::begin(line.seen), std::end(line.seen), 0);
  return line;
}

void AccessLog::note(Access kind, int lane, uint32_t offset, int bytes, Site site) {
  Line& line = find(kind, bytes, site);
  const size_t nth = line.seen[lane]++;
  if (nth == line.used) {
    if (line.used == line.instructions.size()) line.instructions.emplace_back();
    line.instructions[line.used++].lanes = 0;
  }
  Instruction& instruction = line.instructions[nth];
  instruction.lanes |= 1u << lane;
  instruction.offsets[lane] = offset;
}

void AccessLog::count(Counts& counts) {
  for (size_t l = 0; l < used_; ++l) {
    const Line& line = lines_[l];
    const int phase = line.bytes == 16 ? 8 : kWarp;  // lanes that are served together
    for (size_t i = 0; i < line.used; ++i) {
      const Instruction& instruction = line.instructions[i];
      for (int first = 0; first < kWarp; first += phase) {
        uint32_t offsets[kWarp];
        int active = 0;
        for (int lane = first; lane < first + phase; ++lane)
          if (instruction.lanes >> lane & 1) offsets[active++] = instruction.offsets[lane];
        if (active == 0) continue;
        counts.add(line.what.kind, line.what.site,
                   line.bytes == 16 ? wavefronts_16(offsets, active) : wavefronts_4(offsets, active));
      }
    }
  }
  used_ = 0;
}

}  // namespace film::emulator

uint64_t film_emulator_wavefronts(const char* kind) {
  return film::emulator::sum(kind, &film::emulator::Count::wavefronts);
}

uint64_t film_emulator_bank_conflicts(const char* kind) {
  return film::emulator::sum(kind, &film::emulator::Count::conflicts);
}

void film_emulator_reset_counters() {
  auto& all = film::emulator::total();
  const std::lock_guard lock(all.mutex);
  all.counts.clear();
}

void film_emulator_report() {
  auto& all = film::emulator::total();
  const std::lock_guard lock(all.mutex);
  for (const auto& c : all.counts)
    std::fprintf(stderr, "film emulator: %s: %s, %" PRIu64 " wavefronts, %" PRIu64 " of them bank conflicts\n",
                 film::emulator::text(c.site).c_str(), film::emulator::kNames[static_cast<int>(c.kind)], c.wavefronts,
                 c.conflicts);
}
