// The order in which warps and lanes run differs from seed to seed, so that a missing barrier shows.
#include <chrono>
#include <set>
#include <thread>

#include "check.h"

using namespace film::check;
namespace ptx = film::ptx;

namespace {

constexpr int kThreads = 128;

enum class Without { nothing, barrier, warp_barrier, second_barrier };

// The sum of a block: shuffles in each warp, then the warps' sums through shared memory, twice over the same place.
template <Without without>
__global__ void sums(const float* values, float* out) {
  float* const shared = ptx::shared_memory<float>();
  for (int round = 0; round < 2; ++round) {
    float sum = values[round * kThreads + threadIdx.x];
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    if (without != Without::barrier) __syncthreads();
    if (threadIdx.x < 32) {
      sum = threadIdx.x < kThreads / 32 ? shared[threadIdx.x] : 0;
      for (int i = 2; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
      if (threadIdx.x == 0) out[round] = sum;
    }
    if (without != Without::second_barrier) __syncthreads();
  }
}

// Each lane takes what its neighbour put down.
template <Without without>
__global__ void neighbours(float* out) {
  float* const shared = ptx::shared_memory<float>();
  shared[threadIdx.x] = threadIdx.x;
  if (without != Without::warp_barrier) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

template <Without without>
bool sums_are_right() {
  std::vector<float> values(2 * kThreads), out(2, -1);
  for (int i = 0; i < 2 * kThreads; ++i) values[i] = static_cast<float>(i);
  const auto error = film::cuda::launch(sums<without>, dim3(1), dim3(kThreads), 16, nullptr, values.data(), out.data());
  expect(error == cudaSuccess, "launch: %d", error);
  return out[0] == 8128 && out[1] == 8128 + 128 * 128;
}

template <Without without>
bool neighbours_are_right() {
  std::vector<float> out(kThreads);
  const auto error =
      film::cuda::launch(neighbours<without>, dim3(1), dim3(kThreads), kThreads * 4, nullptr, out.data());
  expect(error == cudaSuccess, "launch: %d", error);
  for (int i = 0; i < kThreads; ++i)
    if (out[i] != static_cast<float>(i ^ 1)) return false;
  return true;
}

__global__ void poison(unsigned* out, unsigned words) {
  unsigned* const shared = ptx::shared_memory<unsigned>();
  for (unsigned i = threadIdx.x; i < words; i += blockDim.x) out[blockIdx.x * words + i] = shared[i];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < words; i += blockDim.x) shared[i] = 5;
}

// Where each thread stands in the order of all.
__global__ void places(unsigned* next, unsigned* out) {
  for (int round = 0; round < 3; ++round) {
    out[threadIdx.x] = (*next)++;
    __syncwarp();
  }
}

__global__ void slow(std::thread::id* ids, unsigned* out, bool fail) {
  uint4* const shared = ptx::shared_memory<uint4>();
  if (threadIdx.x == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ids[blockIdx.x] = std::this_thread::get_id();
  }
  ptx::store_shared_16(shared + threadIdx.x, make_uint4(0, 0, 0, 0));
  if (!fail || blockIdx.x < 20 || threadIdx.x >= 32) __syncthreads();
  if (out != nullptr) out[blockIdx.x * 64 + threadIdx.x] = shared[0].x++;  // the order of the threads, by a race
}

}  // namespace

CHECK(missing_barrier) {
  expect(seeds_where(sums_are_right<Without::nothing>) == 5, "the right kernel fails");
  expect(seeds_where(sums_are_right<Without::barrier>) < 5, "no seed shows that a barrier is missing");
  expect(seeds_where(sums_are_right<Without::second_barrier>) < 5, "no seed shows that the second is missing");
  expect(seeds_where(neighbours_are_right<Without::nothing>) == 5, "the right neighbours fail");
  expect(seeds_where(neighbours_are_right<Without::warp_barrier>) == 0, "a seed hides that __syncwarp is missing");
}

CHECK(poisoned_memory) {
  constexpr unsigned kWords = 1000;
  std::vector<unsigned> out(8 * kWords);
  const auto error = film::cuda::launch(poison, dim3(8), dim3(64), kWords * 4, nullptr, out.data(), kWords);
  expect(error == cudaSuccess, "launch: %d", error);
  for (const unsigned word : out) expect(word == ~0u, "shared memory begins with %08x", word);
}

CHECK(order_follows_seed) {
  for (const unsigned threads : {32u, 128u}) {
    std::set<std::vector<unsigned>> orders;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      film_emulator_set_seed(seed);
      std::vector<unsigned> first(threads), second(threads);
      for (auto* out : {&first, &second}) {
        unsigned next = 0;
        const auto error = film::cuda::launch(places, dim3(1), dim3(threads), 0, nullptr, &next, out->data());
        expect(error == cudaSuccess && next == 3 * threads, "launch: %d", error);
      }
      expect(first == second, "seed %d gives two orders", static_cast<int>(seed));
      orders.insert(first);
    }
    expect(orders.size() >= 18, "%zu orders of 20", orders.size());
  }
}

// Blocks shared out over host threads give the same results, orders and counts.
CHECK(host_threads) {
  constexpr unsigned kBlocks = 40;
  std::vector<std::vector<unsigned>> orders;
  std::set<std::thread::id> seen;
  for (const int threads : {1, 3}) {
    film_emulator_set_threads(threads);
    film_emulator_reset_counters();
    std::vector<std::thread::id> ids(kBlocks);
    std::vector<unsigned> out(kBlocks * 64, ~0u);
    const auto error =
        film::cuda::launch(slow, dim3(kBlocks), dim3(64), 64 * 16, nullptr, ids.data(), out.data(), false);
    expect(error == cudaSuccess, "launch: %d", error);
    expect(film_emulator_wavefronts("store") == 8 * kBlocks, "wavefronts");
    orders.push_back(out);
    seen.insert(ids.begin(), ids.end());
  }
  expect(orders[0] == orders[1], "the order depends on the host's threads");
  expect(seen.size() > 1, "all blocks ran on one thread");
  std::vector<std::thread::id> ids(kBlocks);
  expect_failure(film::cuda::launch(slow, dim3(kBlocks), dim3(64), 64 * 16, nullptr, ids.data(), nullptr, true),
                 cudaErrorLaunchFailure, "warp 1, lanes 0-31: in __syncthreads");
}

// For the test that loads these checks as a library: one value for each of 256 threads, and their two sums.
extern "C" int film_check_sums(const float* values, float* out, bool right) {
  const auto launch = [&](auto kernel) {
    return film::cuda::launch(kernel, dim3(1), dim3(kThreads), 16, nullptr, values, out);
  };
  return right ? launch(sums<Without::nothing>) : launch(sums<Without::barrier>);
}
