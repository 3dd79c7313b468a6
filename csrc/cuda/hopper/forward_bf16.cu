// The kernels for bfloat16, compiled beside those for float16: each takes minutes.
#include "start.cuh"

namespace film::cuda::hopper {

cudaError_t forward_bf16(const Problem& p, const ForwardArgs& args, int tile, cudaStream_t stream) {
  return start<__nv_bfloat16>(p, args, tile, stream);
}

}  // namespace film::cuda::hopper
