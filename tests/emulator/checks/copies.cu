// cp.async: when a copy lands, and what is there before.
#include "check.h"

using namespace film::check;
namespace ptx = film::ptx;

namespace {

constexpr int kThreads = 64, kGroups = 4;

// Each thread copies one piece in each of four groups, then looks at all with n of them left to wait for.
template <int left>
__global__ void groups(const uint4* from, uint4* out) {
  uint4* const shared = ptx::shared_memory<uint4>();
  for (int g = 0; g < kGroups; ++g) {
    ptx::cp_async_16(shared + g * kThreads + threadIdx.x, from + g * kThreads + threadIdx.x, true);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<left>();
  for (int g = 0; g < kGroups; ++g) out[g * kThreads + threadIdx.x] = shared[g * kThreads + threadIdx.x];
  ptx::cp_async_wait<0>();
}

template <int left>
void check_groups() {
  Buffer<uint4> from(kGroups * kThreads), out(kGroups * kThreads);
  for (unsigned i = 0; i < kGroups * kThreads; ++i) from[i] = make_uint4(i, i + 1, i + 2, i + 3);
  const auto error = film::cuda::launch(groups<left>, dim3(1), dim3(kThreads), kGroups * kThreads * 16, nullptr, from,
                                        static_cast<uint4*>(out));
  expect(error == cudaSuccess, "launch: %d", error);
  for (unsigned i = 0; i < kGroups * kThreads; ++i) {
    const bool landed = static_cast<int>(i) / kThreads < kGroups - left;
    expect(out[i].x == (landed ? i : ~0u) && out[i].w == (landed ? i + 3 : ~0u), "%d left, element %u: %08x", left, i,
           out[i].x);
  }
}

// Zeros where not valid, from an address that must not be touched; 4 bytes at a time too.
__global__ void zeros(const unsigned* from, unsigned* out) {
  unsigned* const shared = ptx::shared_memory<unsigned>();
  const bool valid = threadIdx.x % 2 == 0;
  const unsigned* const nowhere = reinterpret_cast<const unsigned*>(uintptr_t{1});
  ptx::cp_async_4(shared + threadIdx.x, valid ? from + threadIdx.x : nowhere, valid);
  ptx::cp_async_16(shared + 32 + threadIdx.x * 4, valid ? from + threadIdx.x * 4 : nowhere, valid);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  out[threadIdx.x] = shared[threadIdx.x];
  for (int i = 0; i < 4; ++i) out[32 + threadIdx.x * 4 + i] = shared[32 + threadIdx.x * 4 + i];
}

// The tile that is there is gone once a copy over it is issued, and another thread sees the new one only after the
// thread that copied has waited.
__global__ void overwrite(const unsigned* from, unsigned* out) {
  unsigned* const shared = ptx::shared_memory<unsigned>();
  shared[threadIdx.x] = 7;
  __syncthreads();
  ptx::cp_async_4(shared + threadIdx.x, from + threadIdx.x, true);
  ptx::cp_async_commit();
  out[threadIdx.x] = shared[threadIdx.x];
  __syncthreads();
  out[64 + threadIdx.x] = shared[threadIdx.x ^ 32];
  __syncthreads();
  ptx::cp_async_wait<0>();
  __syncthreads();
  out[128 + threadIdx.x] = shared[threadIdx.x ^ 32];
}

enum class Mistake { none, never_waited, never_committed, misaligned_shared, misaligned_global, outside };

template <Mistake mistake>
__global__ void mistaken(const unsigned char* from) {
  unsigned char* const shared = ptx::shared_memory<unsigned char>();
  ptx::cp_async_16(shared + threadIdx.x * 16 + (mistake == Mistake::misaligned_shared ? 8 : 0) +
                       (mistake == Mistake::outside ? 16 : 0),
                   from + (mistake == Mistake::misaligned_global ? 4 : 0), true);
  if (mistake != Mistake::never_committed) ptx::cp_async_commit();
  if (mistake != Mistake::never_waited) ptx::cp_async_wait<0>();
}

template <Mistake mistake>
cudaError_t make() {
  Buffer<unsigned char> from(32);
  return film::cuda::launch(mistaken<mistake>, dim3(1), dim3(32), 32 * 16, nullptr, static_cast<unsigned char*>(from));
}

// A pipeline of three stages that sums tiles. `left` groups may still be on their way when a tile is read, and a tile
// is fetched `ahead` tiles before it is read.
template <int left, int ahead, bool barrier>
__global__ void pipeline(const float* from, float* out, int tiles) {
  constexpr int kStages = 3;
  float* const shared = ptx::shared_memory<float>();
  const int thread = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int tile) {
    if (tile < tiles)
      ptx::cp_async_4(shared + tile % kStages * kThreads + thread, from + tile * kThreads + thread, true);
    ptx::cp_async_commit();
  };
  float sum = 0;
  for (int tile = 0; tile < ahead; ++tile) fetch(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    ptx::cp_async_wait<left>();
    if (barrier) __syncthreads();
    sum += shared[tile % kStages * kThreads + (thread + 1) % kThreads];
    fetch(tile + ahead);
  }
  ptx::cp_async_wait<0>();
  out[thread] = sum;
}

template <int left, int ahead, bool barrier>
bool pipeline_is_right() {
  constexpr int kTiles = 9;
  std::vector<float> from(kTiles * kThreads), out(kThreads);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<float>(i % 37);
  const auto error = film::cuda::launch(pipeline<left, ahead, barrier>, dim3(1), dim3(kThreads), 3 * kThreads * 4,
                                        nullptr, from.data(), out.data(), kTiles);
  expect(error == cudaSuccess, "launch: %d", error);
  for (int i = 0; i < kThreads; ++i) {
    float sum = 0;
    for (int tile = 0; tile < kTiles; ++tile) sum += from[tile * kThreads + (i + 1) % kThreads];
    if (out[i] != sum) return false;
  }
  return true;
}

}  // namespace

CHECK(copy_groups) {
  check_groups<0>();
  check_groups<1>();
  check_groups<3>();
  check_groups<4>();
  check_groups<7>();
}

CHECK(copy_zeros) {
  Buffer<unsigned> from(128), out(160);
  for (unsigned i = 0; i < 128; ++i) from[i] = i + 1;
  const auto error = film::cuda::launch(zeros, dim3(1), dim3(32), 160 * 4, nullptr, static_cast<unsigned*>(from),
                                        static_cast<unsigned*>(out));
  expect(error == cudaSuccess, "launch: %d", error);
  for (unsigned i = 0; i < 32; ++i) expect(out[i] == (i % 2 == 0 ? i + 1 : 0), "4 bytes, %u: %u", i, out[i]);
  for (unsigned i = 0; i < 128; ++i)
    expect(out[32 + i] == (i / 4 % 2 == 0 ? i + 1 : 0), "16 bytes, %u: %u", i, out[32 + i]);
}

CHECK(copy_overwrites) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    film_emulator_set_seed(seed);
    Buffer<unsigned> from(64), out(192);
    for (unsigned i = 0; i < 64; ++i) from[i] = i;
    const auto error = film::cuda::launch(overwrite, dim3(1), dim3(64), 64 * 4, nullptr, static_cast<unsigned*>(from),
                                          static_cast<unsigned*>(out));
    expect(error == cudaSuccess, "launch: %d", error);
    for (unsigned i = 0; i < 64; ++i) {
      expect(out[i] == ~0u, "issued, not waited for: %08x", out[i]);
      expect(out[64 + i] == ~0u, "another's, not waited for: %08x", out[64 + i]);
      expect(out[128 + i] == (i ^ 32), "another's, waited for: %08x", out[128 + i]);
    }
  }
}

CHECK(copy_mistakes) {
  expect(make<Mistake::none>() == cudaSuccess, "no mistake");
  expect_failure(make<Mistake::never_waited>(), cudaErrorLaunchFailure, "never waited for");
  expect_failure(make<Mistake::never_committed>(), cudaErrorLaunchFailure, "never waited for");
  expect_failure(make<Mistake::misaligned_shared>(), cudaErrorLaunchFailure, "not a multiple");
  expect_failure(make<Mistake::misaligned_global>(), cudaErrorLaunchFailure, "not a multiple");
  expect_failure(make<Mistake::outside>(), cudaErrorLaunchFailure, "outside shared memory");
  expect(make<Mistake::none>() == cudaSuccess, "no mistake, afterwards");
}

CHECK(pipeline_mistakes) {
  expect(seeds_where(pipeline_is_right<1, 2, true>) == 5, "the right pipeline fails");
  expect(seeds_where(pipeline_is_right<2, 2, true>) == 0, "one that waits for a group too few passes");
  expect(seeds_where(pipeline_is_right<2, 3, true>) < 5, "one that fetches over what others still read passes");
  expect(seeds_where(pipeline_is_right<1, 2, false>) < 5, "one without its barrier passes");
}
