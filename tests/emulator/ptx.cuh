// Stands in for csrc/cuda/ptx.cuh: each instruction by the PTX manual, run by the emulator. A call takes one argument
// more than on the card, the line that it stands on, and nobody has to give it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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

inline float exp2(float value) { return std::exp2(value); }

inline float reciprocal(float value) { return 1 / value; }

// To nearest, halves away from zero.
inline uint32_t to_tf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

}  // namespace film::ptx
