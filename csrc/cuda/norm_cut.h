// How the positions of norm_film's tensors are cut into chunks and shared out among threads: by sizes and layouts
// alone, so that every run adds in the same order.
//
// A thread walks over the packets of one chunk of positions. Where positions lie side by side in memory ("planes") `tx`
// threads have one channel of a sample, and a block has `ty` such chunks of a group, one after another. Where channels
// do ("pixels") `tx` threads have `tx` packets of channels, and `ty` such rows have every ty-th position of a chunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "../norm_problem.h"

namespace film::cuda {

constexpr int kNormThreads = 256, kNormFusedThreads = 384;  // of a block, at most

struct NormCut {
  bool pixels;
  int vector;         // elements that a thread moves at once
  int tx, ty;         // threads
  int64_t size;       // positions of a chunk
  int64_t chunks;     // of the positions of a sample
  int64_t per_group;  // planes: blocks of a group; pixels: slabs of tx packets that the channels make
  int64_t blocks;
  int64_t steps;  // packets that a thread has, at most
  bool fused;     // one block has all of a group, and holds it in shared memory: one launch forward

  int threads() const { return (tx * ty + 31) / 32 * 32; }
  int64_t held_bytes(int64_t element) const { return threads() * steps * vector * element; }
};

// Sizes that decide; tests give smaller ones.
struct NormLimits {
  int64_t held = 96 * 1024;  // bytes of shared memory that a block holds a group in: what every card since sm_80 has
  int64_t steps = 16;        // times 16 bytes that a thread has
  int64_t units = 8;         // chunks of a block where one is not enough for a group
};

inline int64_t norm_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// The lines of a group: channels of a sample, or samples of a channel.
inline int64_t norm_lines(const NormProblem& p) {
  return p.norm == Norm::batch ? p.batch : p.norm == Norm::group ? p.channels / p.groups : p.channels;
}
inline int64_t norm_groups(const NormProblem& p) {
  return p.norm == Norm::batch ? p.channels : p.norm == Norm::group ? p.batch * p.groups : p.batch;
}

// Elements of a packet: as many for every type, so that the registers of a thread are too.
constexpr int kNormPacket = 4;

// How many elements a thread can move at once in all of these tensors: a packet of them, or one.
inline int norm_vector(const NormProblem& p, bool pixels, std::initializer_list<const Cube*> cubes) {
  constexpr int64_t vector = kNormPacket;
  const int64_t bytes = vector * bytes_of(p.dtype);
  bool fits = (pixels ? p.channels : p.positions) % vector == 0;
  for (const Cube* cube : cubes)
    fits = fits && cube->n % vector == 0 && (pixels ? cube->p : cube->c) % vector == 0 &&
           reinterpret_cast<uintptr_t>(cube->data) % bytes == 0;
  return fits ? kNormPacket : 1;
}

inline NormCut norm_cut(const NormProblem& p, bool pixels, int vector, const NormLimits& limits = {}) {
  NormCut cut{};
  cut.pixels = pixels, cut.vector = vector;
  const int64_t element = bytes_of(p.dtype), packet = vector * element;
  const int64_t most_steps = limits.steps * (4 / element);  // as many packets of a thread, at most
  if (!pixels) {
    const int64_t packets = p.positions / vector, lines = norm_lines(p);
    cut.tx = 1;
    while (cut.tx < 32 && cut.tx < packets) cut.tx *= 2;
    cut.size = std::min(p.positions, cut.tx * vector * most_steps);
    cut.chunks = norm_ceil_div(p.positions, cut.size);
    const int64_t units = lines * cut.chunks, threads = norm_ceil_div(units * cut.tx, 32) * 32;
    cut.steps = norm_ceil_div(cut.size / vector, cut.tx);
    cut.fused = p.takes_mean() && threads * cut.steps * packet <= limits.held && units * cut.tx <= kNormFusedThreads;
    const int64_t most = cut.fused ? units : limits.units * (32 / cut.tx);
    cut.ty = static_cast<int>(norm_ceil_div(units, norm_ceil_div(units, most)));
    cut.per_group = norm_ceil_div(units, cut.ty);
    cut.blocks = norm_groups(p) * cut.per_group;
    return cut;
  }
  const int64_t packets = norm_ceil_div(p.channels, vector), each = p.norm == Norm::group ? p.channels / p.groups : 1;
  int64_t whole = 1;  // packets that hold whole groups, and whole sectors of memory
  while (whole <= 64 && (whole * vector % each != 0 || whole * packet < 32) && whole < packets) ++whole;
  const int64_t rows = std::clamp<int64_t>(p.positions, 1, kNormThreads / whole);
  const int64_t threads = norm_ceil_div(whole * rows, 32) * 32, steps = norm_ceil_div(p.positions, rows);
  cut.fused =
      p.norm == Norm::group && whole * vector % each == 0 && whole <= 64 && threads * steps * packet <= limits.held;
  if (cut.fused) {
    cut.tx = static_cast<int>(whole), cut.ty = static_cast<int>(rows), cut.size = p.positions;
  } else {
    cut.tx = static_cast<int>(norm_ceil_div(packets, norm_ceil_div(packets, 32)));
    cut.ty = static_cast<int>(std::min<int64_t>(kNormThreads / cut.tx, p.positions));
    cut.size = std::min(p.positions, cut.ty * most_steps);
  }
  cut.chunks = norm_ceil_div(p.positions, cut.size);
  cut.per_group = norm_ceil_div(packets, cut.tx);
  cut.blocks = p.batch * cut.per_group * cut.chunks;
  cut.steps = norm_ceil_div(cut.size, cut.ty);
  return cut;
}

// Whether what blocks found of a group is put together by a kernel of its own, rather than by every block that makes y.
inline bool norm_merges(const NormProblem& p, const NormCut& cut) {
  constexpr int64_t kMost = 64;  // lines and chunks, two for each thread of a warp
  return !cut.fused && norm_lines(p) * cut.chunks > kMost;
}

}  // namespace film::cuda
