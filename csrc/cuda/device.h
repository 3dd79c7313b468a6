// The device and the stream that the operators' kernels go to, and what is said where one fails.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"

namespace film {

#ifdef FILM_EMULATED  // tests/emulator: the kernels run on the CPU, on tensors that are there
struct OnDevice {
  explicit OnDevice(const Argument&) {}
  cudaStream_t stream() const { return nullptr; }
};
#else
// Makes the tensor's device the current one; kernels go to the stream that PyTorch uses there.
struct OnDevice {
  int32_t index;
  torch::stable::accelerator::DeviceGuard guard;

  explicit OnDevice(const Argument& a) : index(a.device), guard(index) {}
  cudaStream_t stream() const {
    void* stream;
    call(aoti_torch_get_current_cuda_stream(index, &stream), "tell the current stream");
    return static_cast<cudaStream_t>(stream);
  }
};
#endif

inline void check(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, "film_kernels: the CUDA kernel ", kernel,
                  " failed: ", cudaGetErrorString(error));
}

}  // namespace film
