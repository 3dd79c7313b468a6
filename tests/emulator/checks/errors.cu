// What would hang or be undefined on the card ends the launch with an error that says where.
#include "check.h"

using namespace film::check;
namespace ptx = film::ptx;

namespace {

enum class Mistake {
  none,
  some_lanes,         // a shuffle that half the lanes reach
  different_places,   // two shuffles, each reached by half the lanes
  different_kinds,    // a shuffle and a vote
  barrier_of_some,    // a barrier that one warp does not reach
  barrier_in_a_warp,  // a barrier that half a warp does not reach
  two_barriers,       // each warp at a barrier of its own
  mask,               // a shuffle of half a warp
  outside,            // ldmatrix
  misaligned,
  load_outside,  // of 16 bytes
};

template <Mistake mistake>
__global__ void mistaken(float* out) {
  unsigned char* const shared = ptx::shared_memory<unsigned char>();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float v = 1;
  uint32_t r[4];
  if (mistake == Mistake::none) v = __shfl_sync(~0u, v, 0);
  if (mistake == Mistake::some_lanes && lane < 16) v = __shfl_xor_sync(~0u, v, 1);
  if (mistake == Mistake::different_places) {
    if (lane < 16) {
      v = __shfl_xor_sync(~0u, v, 1);
    } else {
      v = __shfl_xor_sync(~0u, v, 1);
    }
  }
  if (mistake == Mistake::different_kinds) v = lane < 16 ? __shfl_xor_sync(~0u, v, 1) : __any_sync(~0u, v);
  if (mistake == Mistake::barrier_of_some && warp == 1) __syncthreads();
  if (mistake == Mistake::barrier_in_a_warp && lane != 31) __syncthreads();
  if (mistake == Mistake::two_barriers) {
    if (warp == 0) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (mistake == Mistake::mask) v = __shfl_xor_sync(0xffffu, v, 1);
  if (mistake == Mistake::outside) ptx::ldmatrix_x4(r, shared + 512 + lane * 16);
  if (mistake == Mistake::misaligned) ptx::ldmatrix_x4(r, shared + lane * 16 + 4);
  if (mistake == Mistake::load_outside) v = static_cast<float>(ptx::load_shared_16(shared - 16 + lane * 16).x);
  if (out != nullptr) out[threadIdx.x] = v;
}

template <Mistake mistake>
cudaError_t make(unsigned threads = 64) {
  return film::cuda::launch(mistaken<mistake>, dim3(2), dim3(threads), 1000, nullptr, nullptr);
}

void expect_fine() {
  expect_failure(make<Mistake::some_lanes>(256), cudaErrorLaunchFailure,
                 "warp 7");  // of warps that are gone afterwards
  expect(make<Mistake::none>() == cudaSuccess, "a launch after one that failed");
}

}  // namespace

CHECK(divided_warp) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    film_emulator_set_seed(seed);
    expect_failure(make<Mistake::some_lanes>(), cudaErrorLaunchFailure, "lanes 0-15: in __shfl_xor_sync at errors.cu:");
    expect_failure(make<Mistake::some_lanes>(), cudaErrorLaunchFailure, "lanes 16-31: ended");
    expect_failure(make<Mistake::different_places>(), cudaErrorLaunchFailure, "the warp is divided: __shfl_xor_sync");
    expect_failure(make<Mistake::different_kinds>(), cudaErrorLaunchFailure, "the warp is divided");
    expect_failure(make<Mistake::mask>(), cudaErrorLaunchFailure, "only whole warps");
    expect_fine();
  }
}

CHECK(unreached_barrier) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    film_emulator_set_seed(seed);
    expect_failure(make<Mistake::barrier_of_some>(), cudaErrorLaunchFailure, "warp 1, lanes 0-31: in __syncthreads");
    expect_failure(make<Mistake::barrier_of_some>(), cudaErrorLaunchFailure, "warp 0, lanes 0-31: ended");
    expect_failure(make<Mistake::barrier_in_a_warp>(), cudaErrorLaunchFailure, "warp 0, lanes 31-31: ended");
    expect_failure(make<Mistake::two_barriers>(), cudaErrorLaunchFailure, "while others wait in the one at errors.cu:");
    expect_fine();
  }
}

CHECK(shared_address) {
  expect_failure(make<Mistake::outside>(), cudaErrorLaunchFailure, "ldmatrix of 16 bytes outside shared memory");
  expect_failure(make<Mistake::misaligned>(), cudaErrorLaunchFailure, "not a multiple: offset 4");
  expect_failure(make<Mistake::load_outside>(), cudaErrorLaunchFailure, "load_shared of 16 bytes outside");
  expect_fine();
}

CHECK(launch_limits) {
  const auto launch = [](dim3 grid, dim3 block, size_t shared) {
    return film::cuda::launch(mistaken<Mistake::none>, grid, block, shared, nullptr, nullptr);
  };
  expect(launch(dim3(1), dim3(32), 227 * 1024) == cudaSuccess, "227 KiB");
  expect_failure(launch(dim3(1), dim3(32), 227 * 1024 + 1), cudaErrorInvalidValue, "bytes of shared memory");
  film_emulator_set_shared_limit(99 * 1024);
  expect_failure(launch(dim3(1), dim3(32), 100 * 1024), cudaErrorInvalidValue, "bytes of shared memory");
  film_emulator_set_shared_limit(227 * 1024);
  expect(launch(dim3(1), dim3(1024), 0) == cudaSuccess, "1024 threads");
  expect_failure(launch(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration, "a block of 1025");
  expect_failure(launch(dim3(1), dim3(32, 32, 2), 0), cudaErrorInvalidConfiguration, "a block of 32 x 32 x 2");
  expect_failure(launch(dim3(0), dim3(32), 0), cudaErrorInvalidConfiguration, "a grid of 0");
  expect_failure(launch(dim3(1, 65536), dim3(32), 0), cudaErrorInvalidConfiguration, "a grid of 1 x 65536");
}

CHECK(error_is_kept) {
  const int before = film_emulator_errors();
  film::emulator::launch({dim3(1), dim3(2000), 0, nullptr, &typeid(void), nullptr, nullptr});
  expect(film_emulator_errors() == before + 1, "errors are counted");
  expect(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "peeking");
  expect(cudaPeekAtLastError() == cudaErrorInvalidConfiguration, "peeking again");
  expect(make<Mistake::none>() == cudaErrorInvalidConfiguration,
         "as on the card, a launch reports an error left behind");
  expect(cudaGetLastError() == cudaSuccess, "once");
}
