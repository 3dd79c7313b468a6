// Stands in for csrc/cuda/ptx.cuh: each instruction by the PTX manual, run by the emulator. A call takes one argument
// more than on the card, the line that it stands on, and nobody has to give it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace film::emulator {

struct MatrixLoad {
  uint32_t* registers;
  const void* row;
};

struct Multiply {
  float* d;
  const uint32_t *a, *b;
};

void ldmatrix_x2(const Gathered&);
void ldmatrix_x2_trans(const Gathered&);
void ldmatrix_x4(const Gathered&);
void ldmatrix_x4_trans(const Gathered&);
void mma_f16(const Gathered&);
void mma_bf16(const Gathered&);
void mma_tf32(const Gathered&);

}  // namespace film::emulator

namespace film::ptx {

using emulator::Site;

template <class T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory());
}

inline void cp_async_16(void* shared, const void* global, bool valid, Site site = Site::here()) {
  emulator::copy_issue(shared, global, 16, valid, site);
}

inline void cp_async_8(void* shared, const void* global, bool valid, Site site = Site::here()) {
  emulator::copy_issue(shared, global, 8, valid, site);
}

inline void cp_async_4(void* shared, const void* global, bool valid, Site site = Site::here()) {
  emulator::copy_issue(shared, global, 4, valid, site);
}

inline void cp_async_commit() { emulator::copy_commit(); }

template <int N>
void cp_async_wait() {
  emulator::copy_wait(N);
}

inline uint4 load_shared_16(const void* shared, Site site = Site::here()) {
  emulator::note_access(emulator::Access::load, shared, 16, site);
  return *static_cast<const uint4*>(shared);
}

inline void store_shared_16(void* shared, uint4 value, Site site = Site::here()) {
  emulator::note_access(emulator::Access::store, shared, 16, site);
  *static_cast<uint4*>(shared) = value;
}

inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row, Site site = Site::here()) {
  emulator::MatrixLoad load{r, shared_row};
  emulator::collective("ldmatrix_x2", site, emulator::ldmatrix_x2, &load);
}

inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row, Site site = Site::here()) {
  emulator::MatrixLoad load{r, shared_row};
  emulator::collective("ldmatrix_x2_trans", site, emulator::ldmatrix_x2_trans, &load);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, Site site = Site::here()) {
  emulator::MatrixLoad load{r, shared_row};
  emulator::collective("ldmatrix_x4", site, emulator::ldmatrix_x4, &load);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row, Site site = Site::here()) {
  emulator::MatrixLoad load{r, shared_row};
  emulator::collective("ldmatrix_x4_trans", site, emulator::ldmatrix_x4_trans, &load);
}

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulator::Multiply multiply{d, a, b};
  emulator::collective("mma_f16", site, emulator::mma_f16, &multiply);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulator::Multiply multiply{d, a, b};
  emulator::collective("mma_bf16", site, emulator::mma_bf16, &multiply);
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulator::Multiply multiply{d, a, b};
  emulator::collective("mma_tf32", site, emulator::mma_tf32, &multiply);
}

// a b + c, rounded to the nearest float of those whose last digit is set where digits were lost: rounded to fewer
// digits after that, it is as rounded once.
inline float fma_to_odd(float a, float b, float c) {
  const double exact = static_cast<double>(a) * b + c;
  float r = static_cast<float>(exact);
  if (std::isnan(exact) || std::isinf(exact) || r == exact) return r;
  if (std::abs(r) > std::abs(exact)) r = std::nextafter(r, 0.f);
  return __uint_as_float(__float_as_uint(r) | 1);
}

template <class Element>
uint32_t fma_of_two(uint32_t a, uint32_t b, uint32_t c) {
  Element elements[3][2], results[2];
  for (int i = 0; i < 3; ++i) std::memcpy(elements[i], i == 0 ? &a : i == 1 ? &b : &c, 4);
  for (int i = 0; i < 2; ++i) results[i] = Element(fma_to_odd(elements[0][i], elements[1][i], elements[2][i]));
  uint32_t r;
  std::memcpy(&r, results, 4);
  return r;
}

inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_of_two<__half>(a, b, c); }
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_of_two<__nv_bfloat16>(a, b, c); }

template <class T>
const T* further(const T* base, int count, int pitch) {
  return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(base) + static_cast<int64_t>(count) * pitch);
}

inline uint32_t permute(uint32_t value, uint32_t selector) {
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 15, byte = value >> digit % 4 * 8 & 0xff;
    r |= (digit < 8 ? byte : byte >> 7 ? 0xffu : 0u) << 8 * i;
  }
  return r;
}

// As inexact as a card's: 2^-22 and 2^-23 of the result at most, by a number that has nothing to do with it.
inline float approximate(float exact, float most) {
  uint32_t bits;
  std::memcpy(&bits, &exact, sizeof(bits));
  const float within = static_cast<float>(static_cast<int32_t>(bits * 2654435761u)) / 2147483648.f;
  return std::isfinite(exact) ? exact + exact * (most * within) : exact;
}
inline float exp2(float value) { return approximate(std::exp2(value), 0x1p-22f); }

inline float reciprocal(float value) { return approximate(1 / value, 0x1p-23f); }

// To nearest, halves away from zero.
inline uint32_t to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

}  // namespace film::ptx
