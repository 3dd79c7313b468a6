// What the stand-in headers call, passed on to the processor of this host thread.
#include <cstdarg>
#include <cstdio>

#include "processor.h"

namespace film::emulator {

void* shared_memory() { return running->shared_memory(); }

void barrier(Site site) { running->barrier(site); }

void collective(const char* name, Site site, Perform perform, void* slot) {
  running->collective(name, site, perform, slot);
}

void fault(Site site, const char* format, ...) {
  char what[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof(what), format, arguments);
  va_end(arguments);
  running->fault(site, what);
}

void copy_issue(void* to, const void* from, int bytes, bool valid, Site site) {
  const uint32_t offset = running->shared_offset(to, bytes, "cp.async", site);
  if (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0)
    fault(site, "cp.async of %d bytes from an address that is not a multiple", bytes);
  Lane& lane = running->lane();
  lane.warp->log.note(Access::copy, lane.number, offset, bytes, site);
  lane.copies.issue(to, from, bytes, valid);
}

void copy_commit() { running->lane().copies.commit(); }

void copy_wait(int groups_left) { running->lane().copies.wait(groups_left); }

void note_access(Access kind, const void* address, int bytes, Site site) {
  const char* what = kind == Access::load ? "load_shared" : "store_shared";
  const uint32_t offset = running->shared_offset(address, bytes, what, site);
  Lane& lane = running->lane();
  lane.warp->log.note(kind, lane.number, offset, bytes, site);
}

void note_matrix(const void* const* rows, Site site) {
  uint32_t offsets[8];
  for (int i = 0; i < 8; ++i) offsets[i] = running->shared_offset(rows[i], 16, "ldmatrix", site);
  running->counts().add(Access::ldmatrix, site, wavefronts_16(offsets, 8));
}

}  // namespace film::emulator
