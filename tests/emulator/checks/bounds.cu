// Accesses one too far, which the sanitizers have to stop, and the same ones within bounds.
#include "check.h"

using namespace film::check;
namespace ptx = film::ptx;

namespace {

enum class Where { global_load, global_store, global_copy, shared_store, shared_load, local, misaligned };

constexpr unsigned kThreads = 64;

template <Where where>
__global__ void touch(float* values, unsigned beyond) {
  float* const shared = ptx::shared_memory<float>();
  const unsigned at = threadIdx.x + beyond;
  shared[threadIdx.x] = 1;
  __syncthreads();
  if (where == Where::global_load) shared[threadIdx.x] += values[at];
  if (where == Where::global_store) values[at] = 1;
  if (where == Where::global_copy) {
    ptx::cp_async_4(shared + threadIdx.x, values + at, true);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }
  if (where == Where::shared_store) shared[at] = 1;
  if (where == Where::shared_load) values[threadIdx.x] = shared[at];
  if (where == Where::misaligned) values[0] = reinterpret_cast<const float4*>(values + beyond)->x;
  if (where == Where::local) {
    float mine[kThreads];
    for (unsigned i = 0; i < kThreads; ++i) mine[i] = shared[i];
    __syncthreads();
    values[threadIdx.x] = mine[at];
  }
}

template <Where where>
void run(unsigned beyond) {
  Buffer<float> values(kThreads);
  const auto error = film::cuda::launch(touch<where>, dim3(2), dim3(kThreads), kThreads * 4, nullptr,
                                        static_cast<float*>(values), beyond);
  expect(error == cudaSuccess, "launch: %d", error);
}

}  // namespace

CHECK(within_bounds) {
  run<Where::global_load>(0);
  run<Where::global_store>(0);
  run<Where::global_copy>(0);
  run<Where::shared_store>(0);
  run<Where::shared_load>(0);
  run<Where::local>(0);
  run<Where::misaligned>(0);
}

CHECK(beyond_global_load) { run<Where::global_load>(1); }
CHECK(beyond_global_store) { run<Where::global_store>(1); }
CHECK(beyond_global_copy) { run<Where::global_copy>(1); }
CHECK(beyond_shared_store) { run<Where::shared_store>(1); }
CHECK(beyond_shared_load) { run<Where::shared_load>(1); }
CHECK(beyond_local) { run<Where::local>(1); }
CHECK(beyond_alignment) { run<Where::misaligned>(1); }
