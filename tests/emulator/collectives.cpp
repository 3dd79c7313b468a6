// The instructions of a warp, each computed for all its lanes at once. Fragment layouts: the PTX manual.
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "intrinsics.h"
#include "ptx.cuh"

namespace film::emulator {

namespace {

void nothing(const Gathered&) {}

void want_all(unsigned mask, const char* name, Site site) {
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

using Row = float __attribute__((vector_size(32)));  // of the 8 columns of b and d

struct F16 {
  static constexpr int k = 16;
  static float value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
};

struct Bf16 {
  static constexpr int k = 16;
  static float value(uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
};

struct Tf32 {
  static constexpr int k = 8;
};

// One element of a for each register in tf32, two in the 16-bit types. k is the element's place along the sum.
template <class T>
void unpack(uint32_t bits, int k, int step, float* to) {
  if constexpr (T::k == 8) {
    to[k * step] = __uint_as_float(bits & ~0x1fffu);
  } else {
    to[2 * k * step] = T::value(static_cast<uint16_t>(bits));
    to[(2 * k + 1) * step] = T::value(static_cast<uint16_t>(bits >> 16));
  }
}

// Products of two such numbers are exact in float32; they are added in float32, in order.
template <class T>
void multiply(const Gathered& g, const char* name) {
  want_whole_warp(g, name);
  float a[16][T::k];
  alignas(32) float b[T::k][8];
  alignas(32) float d[16][8];
  for (int i = 0; i < kWarp; ++i) {
    const Multiply& lane = *static_cast<const Multiply*>(g.slots[i]);
    const int row = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) unpack<T>(lane.a[r], t + r / 2 * 4, 1, a[row + r % 2 * 8]);
    for (int r = 0; r < 2; ++r) unpack<T>(lane.b[r], t + r * 4, 8, &b[0][row]);
    for (int r = 0; r < 4; ++r) d[row + r / 2 * 8][2 * t + r % 2] = lane.d[r];
  }
  for (int row = 0; row < 16; ++row) {
    Row sum;
    std::memcpy(&sum, d[row], sizeof(sum));
    for (int k = 0; k < T::k; ++k) {
      Row columns;
      std::memcpy(&columns, b[k], sizeof(columns));
      sum += a[row][k] * columns;
    }
    std::memcpy(d[row], &sum, sizeof(sum));
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
