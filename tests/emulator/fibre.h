// A stack of its own on which a function runs, left and entered again at will.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

namespace film::emulator {

class Fibre {
 public:
  Fibre() = default;
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;
  ~Fibre();

  // Stands for the stack that the calling host thread is on.
  void adopt_host();

  // The next switch here calls entry, which must never return. What ran here before is forgotten.
  void reset(void (*entry)(), size_t number);

  // Goes from this fibre, which must be the one that runs, to another.
  void switch_to(Fibre& other);

 private:
  static void trampoline(unsigned high, unsigned low);
  void forget_frames();

  jmp_buf place_;
  ucontext_t context_;
  bool started_ = false;
  char* mapping_ = nullptr;
  void (*entry_)() = nullptr;
  const void* stack_ = nullptr;
  size_t stack_size_ = 0;
};

}  // namespace film::emulator
