// Starts one of an element type's kernels.
#pragma once

#include "../launch.cuh"
#include "convolution.cuh"

namespace film::cuda::hopper {

template <class T, int kTile>
using KernelOf = typename Convolution<T, kTile>::Kernel;

template <class T, int kTile>
__global__ void __launch_bounds__(KernelOf<T, kTile>::MaxThreadsPerBlock, kTiles[kTile].resident)
    forward_kernel(const __grid_constant__ typename KernelOf<T, kTile>::Params params) {
  extern __shared__ char shared[];
  KernelOf<T, kTile>()(params, shared);
}

template <class T, int kTile = 0>
cudaError_t start(const Problem& p, const ForwardArgs& args, int tile, cudaStream_t stream) {
  if constexpr (kTile == kTileCount) {
    return cudaErrorInvalidValue;
  } else {
    if (tile != kTile) return start<T, kTile + 1>(p, args, tile, stream);
    using Kernel = KernelOf<T, kTile>;
    const auto arguments = Convolution<T, kTile>::arguments_of(p, args);
    if (!Kernel::can_implement(arguments)) return cudaErrorInvalidValue;
    const auto params = Kernel::to_underlying_arguments(arguments, nullptr);
    return launch(forward_kernel<T, kTile>, Kernel::get_grid_shape(params), Kernel::get_block_shape(),
                  Kernel::SharedStorageSize, stream, params);
  }
}

}  // namespace film::cuda::hopper
