// The instruction sets that the library carries, the choice among them, and PyTorch's threads.
#include "chosen_kernels.h"

#include <torch/csrc/stable/ops.h>

#if defined(FILM_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <exception>
#include <mutex>
#include <vector>

#include "checks.h"
#include "processor.h"

namespace film {

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
#if defined(FILM_AMX)
extern const Kernels amx_kernels, emulated_amx_kernels;
#endif
#if defined(FILM_PAIRS)
extern const Kernels pair_kernels, emulated_pair_kernels;
#endif
}  // namespace avx512
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace baseline {
extern const Kernels kernels;
}

namespace {
thread_local bool keeps_to_one_thread = false;
}

OneThread::OneThread(bool asked) : before_(keeps_to_one_thread) { keeps_to_one_thread = before_ || asked; }
OneThread::~OneThread() { keeps_to_one_thread = before_; }

// A part that fails leaves its exception here, since none may leave a thread of PyTorch's, nor would its words come
// back.
void parallel_for(int64_t count, void (*run)(int64_t, int64_t, void*), void* context) {
  if (count <= 1 || keeps_to_one_thread) {
    if (count > 0) run(0, count, context);
    return;
  }
  struct Shared {
    void (*run)(int64_t, int64_t, void*);
    void* context;
    std::once_flag failed;
    std::exception_ptr error;
  } shared{run, context, {}, nullptr};
  const auto part = [](int64_t begin, int64_t end, void* to) {
    Shared& all = *static_cast<Shared*>(to);
    try {
      all.run(begin, end, all.context);
    } catch (...) {
      std::call_once(all.failed, [&] { all.error = std::current_exception(); });
    }
  };
  call(torch_parallel_for(0, count, 1, part, &shared), "share work among threads");
  if (shared.error != nullptr) std::rethrow_exception(shared.error);
}

int64_t thread_count() { return keeps_to_one_thread ? 1 : torch::stable::get_num_threads(); }

namespace {

struct Candidate {
  const Kernels& kernels;
  bool supported;        // by this machine
  bool on_wish = false;  // for tests: only where it is named
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Whether there are tiles, and the system lets this process have their registers, which it has to be asked for.
bool has_amx() {
#if defined(FILM_AMX)
  constexpr long kAskFor = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has_avx512() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// What the library carries, best first.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all{
#if defined(__x86_64__)
#if defined(FILM_AMX)
      {avx512::amx_kernels, has_amx()},
      {avx512::emulated_amx_kernels, has_avx512(), /*on_wish=*/true},
#endif
#if defined(FILM_PAIRS)
      {avx512::pair_kernels, has_avx512() && multiplies_pairs_fast()},
      {avx512::emulated_pair_kernels, has_avx512(), /*on_wish=*/true},
#endif
      {avx512::kernels, has_avx512()},
      {avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {baseline::kernels, true}};
  return all;
}

}  // namespace

std::string built_sets() {
  std::string text;
  for (const Candidate& c : candidates())
    if (!c.on_wish) text += (text.empty() ? "" : ", ") + std::string(c.kernels.name);
  return text;
}

namespace {

// FILM_KERNELS_CPU_ISA names one to use instead of the best.
const Kernels& choose_kernels() {
  const char* variable = std::getenv("FILM_KERNELS_CPU_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
  for (const Candidate& c : candidates()) {
    if (wanted.empty() ? c.on_wish : wanted != c.kernels.name) continue;
    if (c.supported) return c.kernels;
    STD_TORCH_CHECK(wanted.empty(), "film_kernels: FILM_KERNELS_CPU_ISA=", wanted,
                    ": this machine does not have these instructions; built are ", built_sets());
  }
  STD_TORCH_CHECK(false, "film_kernels: FILM_KERNELS_CPU_ISA must be one of ", built_sets(), ", got ", wanted);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

}  // namespace film
