// setcontext restores the signal mask, a system call each time, so it is used to enter a fibre and _longjmp from then
// on. AddressSanitizer has to be told of every change of stack. It takes a longjmp for a return, and at a swapcontext
// it forgets what it knows of the stack that is gone to; getcontext and setcontext it leaves alone.
#undef _FORTIFY_SOURCE  // its longjmp takes a jump to another stack for an attack

#include "fibre.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace film::emulator {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 512 * 1024;  // its frames are larger
#else
constexpr size_t kStack = 128 * 1024;
#endif
constexpr size_t kGuard = 4096;

}  // namespace

Fibre::~Fibre() {
  forget_frames();
  if (mapping_ != nullptr) munmap(mapping_, kGuard + kStack);
}

// Of frames that were left without returning, AddressSanitizer still has it that their surroundings are out of bounds.
void Fibre::forget_frames() {
#ifdef __SANITIZE_ADDRESS__
  if (mapping_ != nullptr) __asan_unpoison_memory_region(mapping_ + kGuard, kStack);
#endif
}

void Fibre::adopt_host() {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* bottom;
  pthread_attr_getstack(&attributes, &bottom, &stack_size_);
  pthread_attr_destroy(&attributes);
  stack_ = bottom;
  started_ = true;
}

void Fibre::reset(void (*entry)(), size_t number) {
  if (mapping_ == nullptr) {
    void* mapping = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping, kGuard, PROT_NONE) != 0) std::abort();
    mapping_ = static_cast<char*>(mapping);
  }
  // Stacks whose tops differ by a power of two would all fall into the same lines of the cache.
  const size_t skipped = number % 29 * 576;
  stack_ = mapping_ + kGuard;
  stack_size_ = kStack - skipped;
  forget_frames();
  entry_ = entry;
  started_ = false;
  getcontext(&context_);
  context_.uc_stack.ss_sp = mapping_ + kGuard;
  context_.uc_stack.ss_size = stack_size_;
  context_.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&context_, reinterpret_cast<void (*)()>(&trampoline), 2, static_cast<unsigned>(self >> 32),
              static_cast<unsigned>(self));
}

void Fibre::trampoline(unsigned high, unsigned low) {
  auto& self = *reinterpret_cast<Fibre*>(static_cast<uintptr_t>(high) << 32 | low);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  self.entry_();
  std::abort();
}

#ifdef __SANITIZE_ADDRESS__

void Fibre::switch_to(Fibre& other) {
  void* volatile frames = nullptr;
  volatile bool back = false;
  __sanitizer_start_switch_fiber(const_cast<void**>(&frames), other.stack_, other.stack_size_);
  getcontext(&context_);
  if (!back) {
    back = true;
    setcontext(&other.context_);
  }
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
}

#else

__attribute__((noinline)) void Fibre::switch_to(Fibre& other) {
  if (_setjmp(place_) != 0) return;
  if (other.started_) _longjmp(other.place_, 1);
  other.started_ = true;
  setcontext(&other.context_);
}

#endif

}  // namespace film::emulator
