// The engine that multiplies tiles (AMX), by assembly for the processor's own, and in plain C++ for the tests of
// machines without one.
//
// A tile is 16 rows of 64 bytes. `multiply` adds to each float32 of a tile C, for its row of A and its column of B, the
// 32 products of bfloat16 in them: B has pairs of rows side by side, as A has pairs of columns.
#pragma once

#include <cstdint>
#include <cstring>

namespace film::FILM_ISA {

constexpr int64_t kTileSide = 16;      // rows of a tile, and its columns of float32
constexpr int64_t kTileProducts = 32;  // columns of bfloat16
constexpr int64_t kTileElements = kTileSide * kTileProducts;

struct Amx {
  // Every tile has its full size between begin and end, which leaves the thread's tiles as they are for others.
  static void begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  static void end() { asm volatile("tilerelease"); }

  template <int TILE>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
  }
  template <int TILE>
  static void load(const void* at, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(row_bytes), "i"(TILE) : "memory");
  }
  template <int TILE>
  static void store(void* at, int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(row_bytes), "i"(TILE) : "memory");
  }
  template <int C, int A, int B>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

// The same, as the processor's manual has it: the sums of even and of odd products, each of fused additions from 0 on,
// are added to each other and then to C. Subnormal numbers count as zeros.
struct EmulatedAmx {
  static void begin() {}
  static void end() {}

  template <int TILE>
  static void zero() {
    std::memset(tiles()[TILE], 0, sizeof tiles()[TILE]);
  }
  template <int TILE>
  static void load(const void* at, int64_t row_bytes) {
    for (int64_t row = 0; row < kTileSide; ++row)
      std::memcpy(tiles()[TILE][row], static_cast<const char*>(at) + row * row_bytes, sizeof tiles()[TILE][row]);
  }
  template <int TILE>
  static void store(void* at, int64_t row_bytes) {
    for (int64_t row = 0; row < kTileSide; ++row)
      std::memcpy(static_cast<char*>(at) + row * row_bytes, tiles()[TILE][row], sizeof tiles()[TILE][row]);
  }
  // All that it reads and writes are tiles, and sanitizers would take minutes over it.
  template <int C, int A, int B>
  [[gnu::no_sanitize_address, gnu::no_sanitize_undefined]] static void multiply() {
    const Tile &a = tiles()[A], &b = tiles()[B];
    Tile& c = tiles()[C];
    for (int64_t row = 0; row < kTileSide; ++row) {
      float even[kTileSide] = {}, odd[kTileSide] = {};
      for (int64_t pair = 0; pair < kTileSide; ++pair) {
        const float even_a = as_float(a[row][pair] << 16), odd_a = as_float(a[row][pair] & 0xffff0000u);
        for (int64_t column = 0; column < kTileSide; ++column) {
          even[column] = flushed(__builtin_fmaf(even_a, as_float(b[pair][column] << 16), even[column]));
          odd[column] = flushed(__builtin_fmaf(odd_a, as_float(b[pair][column] & 0xffff0000u), odd[column]));
        }
      }
      for (int64_t column = 0; column < kTileSide; ++column) {
        const float sum = flushed(as_float(c[row][column]) + flushed(even[column] + odd[column]));
        std::memcpy(&c[row][column], &sum, sizeof sum);
      }
    }
  }

 private:
  using Tile = uint32_t[kTileSide][kTileSide];
  static Tile* tiles() {
    thread_local Tile all[8];
    return all;
  }
  [[gnu::no_sanitize_address, gnu::no_sanitize_undefined]] static float flushed(float x) {
    return x < 0x1p-126f && x > -0x1p-126f ? 0 * x : x;
  }
  [[gnu::no_sanitize_address, gnu::no_sanitize_undefined]] static float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return flushed(x);
  }
};

// The engine is begun for as long as this lives.
template <class Engine>
struct EngineInUse {
  EngineInUse() { Engine::begin(); }
  ~EngineInUse() { Engine::end(); }
  EngineInUse(const EngineInUse&) = delete;
  EngineInUse& operator=(const EngineInUse&) = delete;
};

}  // namespace film::FILM_ISA
