// The one way in which a kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace film::cuda {

constexpr size_t kSharedBytesWithoutAsking = 48 * 1024;

// Returns the error of this launch, or one that was left by a call before it.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A&&... args) {
  if (shared_bytes > kSharedBytesWithoutAsking) {
    // The error is also the last one, and has to be taken from there, or the next launch would be blamed for it.
    if (cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)) != cudaSuccess)
      return cudaGetLastError();
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<P>(std::forward<A>(args))...);
  return cudaGetLastError();
}

}  // namespace film::cuda
