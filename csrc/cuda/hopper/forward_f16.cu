// The kernels for float16.
#include "start.cuh"

namespace film::cuda::hopper {

cudaError_t forward_f16(const Problem& p, const ForwardArgs& args, int tile, cudaStream_t stream) {
  return start<__half>(p, args, tile, stream);
}

}  // namespace film::cuda::hopper
