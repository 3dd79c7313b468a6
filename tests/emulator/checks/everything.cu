// Uses every function of ptx.cuh, for nvcc: what it makes of them can be read in the machine code.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <launch.cuh>
#include <ptx.cuh>

namespace ptx = film::ptx;

struct Params {
  const uint4* in;
  float* out;
  int tiles;
};

template <int kStages>
__global__ void __launch_bounds__(128) everything(const __grid_constant__ Params p) {
  uint4* const shared = ptx::shared_memory<uint4>();
  const int thread = static_cast<int>(threadIdx.x);
  float d[3][4] = {};
  for (int tile = 0; tile < p.tiles; ++tile) {
    ptx::cp_async_16(shared + thread, p.in + tile * 256 + thread, tile % 2 == 0);
    ptx::cp_async_4(shared + 128 + thread, p.in + tile * 256 + 128 + thread, true);
    ptx::cp_async_commit();
    ptx::cp_async_wait<kStages>();
    __syncthreads();
    uint32_t a[4], b[2], c[4], e[2];
    ptx::ldmatrix_x4(a, shared + thread);
    ptx::ldmatrix_x2(b, shared + thread);
    ptx::ldmatrix_x4_trans(c, shared + thread);
    ptx::ldmatrix_x2_trans(e, shared + thread);
    const uint4 v = ptx::load_shared_16(shared + 127 - thread);
    a[0] = ptx::to_tf32(__uint_as_float(v.x));
    ptx::mma_f16(d[0], a, b);
    ptx::mma_bf16(d[1], c, e);
    ptx::mma_tf32(d[2], a, e);
    __syncthreads();
    ptx::store_shared_16(shared + thread, make_uint4(v.w, v.z, v.y, v.x));
  }
  ptx::cp_async_wait<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) p.out[thread * 4 + i] = d[0][i] + d[1][i] + d[2][i];
}

cudaError_t run_everything(const Params& p, cudaStream_t stream) {
  return film::cuda::launch(everything<0>, dim3(1), dim3(128), 64 * 1024, stream, p);
}
