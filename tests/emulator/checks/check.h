// A check is a function that says what it expects; check.cpp runs those that its command line names.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <launch.cuh>
#include <ptx.cuh>
#include <vector>

namespace film::check {

struct Registered {
  Registered(const char* name, void (*run)());
};

void expect(bool holds, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Memory of exactly this size, so that AddressSanitizer sees an access outside it; filled with NaN.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) {
    void* data;
    if (posix_memalign(&data, alignof(uint4), count * sizeof(T)) != 0) std::abort();
    data_ = static_cast<T*>(std::memset(data, 0xff, count * sizeof(T)));
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

// How many of seeds 0 to 4 a condition holds for.
template <class F>
int seeds_where(F holds) {
  int count = 0;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    film_emulator_set_seed(seed);
    count += holds();
  }
  return count;
}

// A launch that must fail, with these words in its message.
void expect_failure(cudaError_t error, cudaError_t expected, const char* words);

}  // namespace film::check

#define CHECK(name)                                                    \
  static void name();                                                  \
  static const film::check::Registered registered_##name(#name, name); \
  static void name()
