// The forward convolution of Hopper's own instructions (hopper/): which problems it serves, in which tiles, and its
// start. All but the start is here, without CUDA or CUTLASS, so that it can be asked and tested anywhere.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../problem.h"

namespace film::cuda::hopper {

// Positions x channels that a block works out, and how many blocks a multiprocessor holds: its registers and shared
// memory are shared out so (hopper/convolution.cuh).
struct Tile {
  int rows, columns, resident;
};
constexpr Tile kTiles[] = {{128, 128, 1}, {128, 64, 2}, {64, 64, 3}};
constexpr int kTileCount = sizeof(kTiles) / sizeof(*kTiles);

// The input is read by the tensor memory accelerator's im2col loads, whose descriptor has 8 bits for each of these in
// two dimensions, and 3 for strides.
constexpr int64_t kMostStride = 8, kMostReach = 254, kLeastCorner = -128, kMostCorner = 127, kMostBefore = 128;
constexpr int64_t kMostPositions = (int64_t(1) << 31) - 256;  // counted in 32 bits, a tile past the last one too
constexpr int64_t kMostAxis = (int64_t(1) << 31) - 1, kMostChannels = 65535 * int64_t(64);  // rows of tiles in a grid
constexpr int64_t kMostBetween = int64_t(1) << 38;  // elements from a sample, or from a filter, to the next

// The padding behind an axis that makes its output as long as it is: no more than the last patch reads.
inline int64_t padding_after(const Axis& a) {
  const int64_t reached = (a.out - 1) * a.stride + (a.kernel - 1) * a.dilation + 1 - a.in - a.pad;
  return reached > 0 ? reached : 0;
}

inline const char* why_not(const Axis& a) {
  const int64_t reach = (a.kernel - 1) * a.dilation, after = padding_after(a);
  if (a.stride > kMostStride) return "it serves strides of at most 8";
  if (reach > kMostReach) return "it serves kernels that reach over at most 255 positions, dilation counted in";
  if (a.pad > kMostBefore) return "it serves padding of at most 128 before a dimension";
  if (after - reach < kLeastCorner || after - reach > kMostCorner)
    return "it serves kernels that reach at most 128 positions further than the padding behind a dimension";
  if ((a.in + a.pad + after - reach - 1) / a.stride + 1 != a.out)
    return "it serves outputs that end where the padded input does";
  if (a.in < 1 || a.in > kMostAxis) return "it serves axes of at least one position that are counted in 32 bits";
  return nullptr;
}

// Why a 2d convolution of channels_last tensors cannot be served, or null.
inline const char* why_not(const Problem& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return "it serves bfloat16 and float16";
  if (p.groups != 1) return "it serves convolutions of one group";
  if (p.in_channels % 8 != 0 || p.out_channels % 8 != 0) return "it serves channels that are multiples of 8";
  if (p.positions() > kMostPositions) return "it serves fewer than 2^31 - 256 output positions";
  if (p.in_channels < 1 || p.in_channels > kMostAxis || p.out_channels > kMostChannels || p.batch > kMostAxis)
    return "it serves batches and channels, of at least one, that are counted in 32 bits";
  if (const char* reason = why_not(p.h)) return reason;
  if (const char* reason = why_not(p.w)) return reason;
  if (p.h.in * p.w.in > kMostBetween / p.in_channels || p.h.kernel * p.w.kernel > kMostBetween / p.in_channels)
    return "it serves samples and filters of fewer elements";
  return nullptr;
}

// The tile (its place in kTiles) for so many positions and channels: the one whose blocks take least time where each
// multiprocessor works out as many as any. A block's time is counted in products, and in rows and columns read, each
// for as much time as 64 products: an estimate of tensor cores and second cache, no measurement on a card stands behind
// it.
inline int tile_for(int64_t positions, int64_t channels, int64_t multiprocessors) {
  constexpr int64_t kProductsOfRow = 64;
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int best = 0;
  int64_t least = INT64_MAX;
  for (int i = 0; i < kTileCount; ++i) {
    const Tile& t = kTiles[i];
    const int64_t blocks = up(positions, t.rows) * up(channels, t.columns);
    const int64_t time = up(blocks, multiprocessors) * (t.rows * t.columns + kProductsOfRow * (t.rows + t.columns));
    if (time < least) least = time, best = i;
  }
  return best;
}

// Start the kernel of the tile at that place in kTiles, where why_not is null.
cudaError_t forward_bf16(const Problem&, const ForwardArgs&, int tile, cudaStream_t);
cudaError_t forward_f16(const Problem&, const ForwardArgs&, int tile, cudaStream_t);

}  // namespace film::cuda::hopper
