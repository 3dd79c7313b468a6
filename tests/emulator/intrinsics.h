// What a kernel uses without asking for it: its indices, barriers, shuffles, votes and small functions.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator.h"
#include "vectors.h"

// __thread, unlike thread_local, is read without asking whether it has been initialised.
extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
constexpr int warpSize = film::emulator::kWarp;

namespace film::emulator {

enum class Shuffle { index, exclusive_or, down, up };

struct Exchange {
  uint64_t value;
  int lane, width;  // the operands of a shuffle
};

void sync_warp(unsigned mask, Site site);
void shuffle(Shuffle kind, unsigned mask, Exchange& exchange, Site site);
unsigned ballot(unsigned mask, bool predicate, const char* name, Site site);

template <class T>
T shuffled(Shuffle kind, unsigned mask, T value, int lane, int width, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shuffles move at most 8 bytes");
  Exchange exchange{0, lane, width};
  std::memcpy(&exchange.value, &value, sizeof(T));
  shuffle(kind, mask, exchange, site);
  std::memcpy(&value, &exchange.value, sizeof(T));
  return value;
}

}  // namespace film::emulator

inline void __syncthreads(film::emulator::Site site = film::emulator::Site::here()) { film::emulator::barrier(site); }

inline void __syncwarp(unsigned mask = ~0u, film::emulator::Site site = film::emulator::Site::here()) {
  film::emulator::sync_warp(mask, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize,
              film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::shuffled(film::emulator::Shuffle::index, mask, value, lane, width, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::shuffled(film::emulator::Shuffle::exclusive_or, mask, value, lane_mask, width, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::shuffled(film::emulator::Shuffle::down, mask, value, delta, width, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::shuffled(film::emulator::Shuffle::up, mask, value, delta, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::ballot(mask, predicate != 0, "__ballot_sync", site);
}

inline int __any_sync(unsigned mask, int predicate, film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::ballot(mask, predicate != 0, "__any_sync", site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, film::emulator::Site site = film::emulator::Site::here()) {
  return film::emulator::ballot(mask, predicate == 0, "__all_sync", site) == 0;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class To, class From>
To film_emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline unsigned __float_as_uint(float v) { return film_emulator_bits<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return film_emulator_bits<float>(v); }
inline int __float_as_int(float v) { return film_emulator_bits<int>(v); }
inline float __int_as_float(int v) { return film_emulator_bits<float>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// CUDA's take two different types of number, and of a NaN and a number they return the number.
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  const T x = static_cast<T>(a), y = static_cast<T>(b);
  return y < x || x != x ? y : x;
}

template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  const T x = static_cast<T>(a), y = static_cast<T>(b);
  return x < y || x != x ? y : x;
}
