// The instructions of a warp, each computed for all its lanes at once. Fragment layouts: the PTX manual.
#include <cstring>

#include "intrinsics.h"
#include "ptx.cuh"

namespace film::emulator {

namespace {

void nothing(const Gathered&) {}

void want_all(unsigned mask, const char* name, Site site) {
  if (mask == ~0u) return;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned after = threads - thread / kWarp * kWarp;
  const unsigned all = after >= kWarp ? ~0u : (1u << after) - 1;
  if ((mask & all) != all) fault(site, "%s of lanes %08x: only whole warps are supported", name, mask);
}

void want_whole_warp(const Gathered& g, const char* name) {
  if (g.lanes != kWarp) fault(g.site, "%s by a warp of %d lanes", name, g.lanes);
}

// ---- shuffles and votes ----

Exchange& exchange(const Gathered& g, int lane) { return *static_cast<Exchange*>(g.slots[lane]); }

// source(own lane, operand, first and last lane of the segment): the lane read from, or -1 for one's own value.
template <class Source>
void shuffle_with(const Gathered& g, Source source) {
  uint64_t values[kWarp];
  for (int i = 0; i < kWarp; ++i) values[i] = i < g.lanes ? exchange(g, i).value : ~uint64_t{0};
  for (int i = 0; i < g.lanes; ++i) {
    Exchange& mine = exchange(g, i);
    const int first = i & ~(mine.width - 1);
    const int from = source(i, mine.lane, first, first + mine.width - 1);
    if (from >= 0) mine.value = values[from];
  }
}

void shuffle_index(const Gathered& g) {
  shuffle_with(g, [](int, int lane, int first, int last) { return first + (lane & (last - first)); });
}

void shuffle_xor(const Gathered& g) {
  shuffle_with(g, [](int self, int mask, int, int last) { return (self ^ mask) <= last ? self ^ mask : -1; });
}

void shuffle_down(const Gathered& g) {
  shuffle_with(g, [](int self, int delta, int, int last) { return self + delta <= last ? self + delta : -1; });
}

void shuffle_up(const Gathered& g) {
  shuffle_with(g, [](int self, int delta, int first, int) { return self - delta >= first ? self - delta : -1; });
}

void vote(const Gathered& g) {
  unsigned votes = 0;
  for (int i = 0; i < g.lanes; ++i) votes |= *static_cast<unsigned*>(g.slots[i]) << i;
  for (int i = 0; i < g.lanes; ++i) *static_cast<unsigned*>(g.slots[i]) = votes;
}

// ---- ldmatrix ----

template <int matrices, bool transposed>
void load_matrices(const Gathered& g, const char* name) {
  want_whole_warp(g, name);
  const auto lane = [&](int i) -> MatrixLoad& { return *static_cast<MatrixLoad*>(g.slots[i]); };
  for (int m = 0; m < matrices; ++m) {
    const void* rows[8];
    for (int r = 0; r < 8; ++r) rows[r] = lane(m * 8 + r).row;
    note_matrix(rows, g.site);
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], rows[r], 16);
    for (int i = 0; i < kWarp; ++i) {
      const int r = i / 4, c = i % 4 * 2;
      const uint32_t low = transposed ? matrix[c][r] : matrix[r][c];
      const uint32_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
      lane(i).registers[m] = low | high << 16;
    }
  }
}

// ---- mma ----

// Eight words are a row of a along the sum, or the eight columns of b: of one element each, or of two of 16 bits.
using Words = uint32_t __attribute__((vector_size(32)));
using Floats = float __attribute__((vector_size(32)));

// Vectors go by reference: how they go by value depends on what the code is compiled for.
struct F16 {
  static constexpr int kElements = 2;
  static void element(const Words& words, int i, Floats& to) {
    const Words half = i == 0 ? words & 0xffffu : words >> 16;
    const Words magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    const Words finite = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);  // see __half2float
    to = reinterpret_cast<Floats>((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite) | sign);
  }
};

struct Bf16 {
  static constexpr int kElements = 2;
  static void element(const Words& words, int i, Floats& to) {
    to = reinterpret_cast<Floats>(i == 0 ? words << 16 : words & 0xffff0000u);
  }
};

struct Tf32 {
  static constexpr int kElements = 1;
  static void element(const Words& words, int, Floats& to) { to = reinterpret_cast<Floats>(words & ~0x1fffu); }
};

// Products of two such numbers are exact in float32; they are added in float32, in order.
template <class T>
void multiply(const Gathered& g, const char* name) {
  want_whole_warp(g, name);
  Words a_words[16], b_words[8];
  Floats d[16];
  for (int i = 0; i < kWarp; ++i) {
    const Multiply& lane = *static_cast<const Multiply*>(g.slots[i]);
    const int group = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) a_words[group + r % 2 * 8][t + r / 2 * 4] = lane.a[r];
    for (int r = 0; r < 2; ++r) b_words[t + r * 4][group] = lane.b[r];
    for (int r = 0; r < 4; ++r) d[group + r / 2 * 8][2 * t + r % 2] = lane.d[r];
  }
  Floats b[8][T::kElements];
  for (int w = 0; w < 8; ++w)
    for (int e = 0; e < T::kElements; ++e) T::element(b_words[w], e, b[w][e]);
  for (int row = 0; row < 16; ++row) {
    Floats a[T::kElements], sum = d[row];
    for (int e = 0; e < T::kElements; ++e) T::element(a_words[row], e, a[e]);
    for (int w = 0; w < 8; ++w)
      for (int e = 0; e < T::kElements; ++e) sum += a[e][w] * b[w][e];
    d[row] = sum;
  }
  for (int i = 0; i < kWarp; ++i) {
    const Multiply& lane = *static_cast<const Multiply*>(g.slots[i]);
    for (int r = 0; r < 4; ++r) lane.d[r] = d[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2];
  }
}

}  // namespace

void sync_warp(unsigned mask, Site site) {
  want_all(mask, "__syncwarp", site);
  collective("__syncwarp", site, nothing, nullptr);
}

void shuffle(Shuffle kind, unsigned mask, Exchange& exchange, Site site) {
  static constexpr const char* kNames[] = {"__shfl_sync", "__shfl_xor_sync", "__shfl_down_sync", "__shfl_up_sync"};
  static constexpr Perform kPerform[] = {shuffle_index, shuffle_xor, shuffle_down, shuffle_up};
  const char* name = kNames[static_cast<int>(kind)];
  want_all(mask, name, site);
  if (exchange.width <= 0 || exchange.width > kWarp || (exchange.width & (exchange.width - 1)) != 0)
    fault(site, "%s with a width of %d", name, exchange.width);
  collective(name, site, kPerform[static_cast<int>(kind)], &exchange);
}

unsigned ballot(unsigned mask, bool predicate, const char* name, Site site) {
  want_all(mask, name, site);
  unsigned votes = predicate;
  collective(name, site, vote, &votes);
  return votes;
}

void ldmatrix_x2(const Gathered& g) { load_matrices<2, false>(g, "ldmatrix"); }
void ldmatrix_x2_trans(const Gathered& g) { load_matrices<2, true>(g, "ldmatrix"); }
void ldmatrix_x4(const Gathered& g) { load_matrices<4, false>(g, "ldmatrix"); }
void ldmatrix_x4_trans(const Gathered& g) { load_matrices<4, true>(g, "ldmatrix"); }

void mma_f16(const Gathered& g) { multiply<F16>(g, "mma_f16"); }
void mma_bf16(const Gathered& g) { multiply<Bf16>(g, "mma_bf16"); }
void mma_tf32(const Gathered& g) { multiply<Tf32>(g, "mma_tf32"); }

}  // namespace film::emulator
