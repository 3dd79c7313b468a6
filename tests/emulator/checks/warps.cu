// Shuffles, votes and the indices of threads, against loops.
#include "check.h"

using namespace film::check;

namespace {

__global__ void shuffles(const int width, float* out) {
  const float mine = 100 + threadIdx.x;
  float* const row = out + threadIdx.x * 5;
  row[0] = __shfl_sync(~0u, mine, threadIdx.x * 3, width);
  row[1] = __shfl_xor_sync(~0u, mine, 5, width);
  row[2] = __shfl_down_sync(~0u, mine, 3, width);
  row[3] = __shfl_up_sync(~0u, mine, 3, width);
  row[4] = static_cast<float>(__shfl_sync(~0u, static_cast<double>(mine), 0, width));
}

__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  unsigned* const row = out + threadIdx.x * 5;
  row[0] = __ballot_sync(~0u, lane % 3 == 0);
  row[1] = __any_sync(~0u, lane == 17);
  row[2] = __any_sync(~0u, lane == 99);
  row[3] = __all_sync(~0u, lane < 32);
  row[4] = __all_sync(~0u, lane != 17);
}

__global__ void indices(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++out[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

}  // namespace

CHECK(shuffle) {
  for (const int width : {32, 16, 4}) {
    float out[32][5];
    const auto error = film::cuda::launch(shuffles, dim3(1), dim3(32), 0, nullptr, width, out[0]);
    expect(error == cudaSuccess, "launch: %d", error);
    for (int lane = 0; lane < 32; ++lane) {
      const int first = lane / width * width, end = first + width;
      const int from[5] = {first + lane * 3 % width, (lane ^ 5) < end ? lane ^ 5 : lane,
                           lane + 3 < end ? lane + 3 : lane, lane - 3 >= first ? lane - 3 : lane, first};
      for (int i = 0; i < 5; ++i)
        expect(out[lane][i] == 100 + from[i], "width %d, lane %d, shuffle %d: %g", width, lane, i, out[lane][i]);
    }
  }
}

CHECK(vote) {
  unsigned out[64][5];
  const auto error = film::cuda::launch(votes, dim3(1), dim3(64), 0, nullptr, out[0]);
  expect(error == cudaSuccess, "launch: %d", error);
  for (const auto& row : out) {
    const unsigned expected[5] = {0x49249249u, 1, 0, 1, 0};
    for (int i = 0; i < 5; ++i) expect(row[i] == expected[i], "vote %d: %08x", i, row[i]);
  }
}

CHECK(every_thread_once) {
  const dim3 grid(3, 4, 5), block(7, 3, 2);
  for (const int threads : {1, 3}) {
    film_emulator_set_threads(threads);
    std::vector<unsigned> out(60 * 42);
    const auto error = film::cuda::launch(indices, grid, block, 0, nullptr, out.data());
    expect(error == cudaSuccess, "launch: %d", error);
    for (const unsigned times : out) expect(times == 1, "a thread ran %u times", times);
  }
}
