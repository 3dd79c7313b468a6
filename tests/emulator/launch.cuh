// Stands in for csrc/cuda/launch.cuh: the kernel is called by the emulator, and is done when launch returns.
#pragma once

#include <tuple>
#include <utility>

#include "cuda_runtime.h"

namespace film::cuda {

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A&&... args) {
  static_cast<void>(stream);
  using Call = std::pair<void (*)(P...), std::tuple<P...>>;
  const Call call{kernel, std::tuple<P...>(static_cast<P>(std::forward<A>(args))...)};
  const auto invoke = [](const void* c) {
    const Call& call = *static_cast<const Call*>(c);
    std::apply(call.first, call.second);
  };
  emulator::launch(
      {grid, block, shared_bytes, reinterpret_cast<const void*>(kernel), &typeid(void(P...)), invoke, &call});
  return cudaGetLastError();
}

}  // namespace film::cuda
