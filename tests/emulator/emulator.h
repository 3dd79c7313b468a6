// What the headers that stand in for CUDA's ask of the emulator, and what a test can ask of it.
//
// A kernel's own source is compiled as C++, and its threads run as fibres: one goes on until it has to wait for others,
// at a barrier or an instruction of the whole warp. Which warp and which lane comes next is shuffled by a seed, so that
// a missing barrier gives a wrong result in some seeds; shared memory begins as NaN in every block; a copy by cp.async
// lands when it is waited for, and what it overwrites is NaN until then. Threads that wait for others which never come,
// and addresses that the card would refuse, end the launch with cudaErrorLaunchFailure and a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <typeinfo>

#include "vectors.h"

namespace film::emulator {

// A place in a kernel's source. As a default argument it is the caller's.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

std::string text(Site site);  // "forward.cu:88"

inline bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

constexpr int kWarp = 32;

void* shared_memory();  // of the running block

// Ends the launch with an error.
[[noreturn]] void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Waits until every thread of the block has come here.
void barrier(Site site);

// Waits until every lane of the warp has come here, each with its operands; the last to come calls perform for all.
struct Gathered {
  void* slots[kWarp];
  int lanes;
  Site site;
};
using Perform = void (*)(const Gathered&);
void collective(const char* name, Site site, Perform perform, void* slot);

// cp.async: issued, it destroys what is at `to`; it lands when waited for.
void copy_issue(void* to, const void* from, int bytes, bool valid, Site site);
void copy_commit();
void copy_wait(int groups_left);

// Shared memory's banks. An access that is no collective is matched with those of the warp's other lanes: the n-th one
// at a site between two collectives is taken to be the same instruction.
enum class Access { ldmatrix, copy, load, store };
void note_access(Access kind, const void* address, int bytes, Site site);
void note_matrix(const void* const* rows, Site site);  // the eight rows of ldmatrix's next matrix

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  const void* function;
  const std::type_info* type;
  void (*invoke)(const void* arguments);
  const void* arguments;
};
int launch(const Launch& launch);  // a cudaError_t

}  // namespace film::emulator

// Exported also from a library that hides everything else.
#pragma GCC visibility push(default)
extern "C" {
void film_emulator_set_seed(uint64_t seed);           // else FILM_EMULATOR_SEED, else 0: the order of warps and lanes
void film_emulator_set_threads(int count);            // else FILM_EMULATOR_THREADS, else the machine's: host threads
void film_emulator_set_shared_limit(size_t bytes);    // else 227 KiB: shared memory of one block
int film_emulator_launches();                         // how many there were
int film_emulator_errors();                           // launches that failed so far
const char* film_emulator_message();                  // of the last one
uint64_t film_emulator_wavefronts(const char* kind);  // "ldmatrix", "cp.async", "load", "store"
uint64_t film_emulator_bank_conflicts(const char* kind);  // those wavefronts that bank conflicts added
void film_emulator_reset_counters();
void film_emulator_report();  // wavefronts and conflicts by line of source, to stderr; at exit with
                              // FILM_EMULATOR_REPORT=1
}
#pragma GCC visibility pop
