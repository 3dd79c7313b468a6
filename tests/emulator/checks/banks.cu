// Bank conflicts of layouts that are known to have them, and of swizzled ones that have none.
#include "check.h"

using namespace film::check;
namespace ptx = film::ptx;

namespace {

enum class Layout { rows, swizzled, padded };

// A tile of 32 rows of 64 halves: piece c of 16 bytes of row r.
template <Layout layout>
__device__ unsigned piece(unsigned row, unsigned column) {
  if (layout == Layout::swizzled) return row * 8 + (column ^ row % 8);
  return row * (layout == Layout::padded ? 9 : 8) + column;
}

// Written by rows, read by ldmatrix by columns.
template <Layout layout>
__global__ void tile(const uint4* from) {
  uint4* const shared = ptx::shared_memory<uint4>();
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) ptx::cp_async_16(shared + piece<layout>(i / 8, i % 8), from, true);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  for (unsigned c = 0; c < 8; ++c) ptx::ldmatrix_x4(r, shared + piece<layout>(lane, c));
}

// Each lane a piece of its own, `apart` pieces from the next; and words through cp.async, `apart` words from the next.
__global__ void pieces(unsigned apart, const unsigned* from) {
  uint4* const shared = ptx::shared_memory<uint4>();
  ptx::store_shared_16(shared + threadIdx.x * apart, make_uint4(1, 2, 3, 4));
  __syncwarp();
  const uint4 v = ptx::load_shared_16(shared + threadIdx.x % 16 * apart);
  assert(v.x == 1 && v.y == 2 && v.z == 3 && v.w == 4);
  __syncwarp();
  ptx::cp_async_4(reinterpret_cast<unsigned*>(shared) + threadIdx.x * apart, from, true);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

void expect_counts(const char* kind, uint64_t wavefronts, uint64_t conflicts) {
  const uint64_t w = film_emulator_wavefronts(kind), c = film_emulator_bank_conflicts(kind);
  expect(w == wavefronts && c == conflicts, "%s: %d wavefronts, %d conflicts", kind, static_cast<int>(w),
         static_cast<int>(c));
}

template <Layout layout>
void run_tile(unsigned blocks) {
  Buffer<uint4> from(1);
  film_emulator_reset_counters();
  const auto error =
      film::cuda::launch(tile<layout>, dim3(blocks), dim3(32), 32 * 9 * 16, nullptr, static_cast<uint4*>(from));
  expect(error == cudaSuccess, "launch: %d", error);
}

void run_pieces(unsigned apart) {
  Buffer<unsigned> from(1);
  film_emulator_reset_counters();
  const auto error =
      film::cuda::launch(pieces, dim3(1), dim3(32), 32 * 16 * apart, nullptr, apart, static_cast<unsigned*>(from));
  expect(error == cudaSuccess, "launch: %d", error);
}

}  // namespace

CHECK(bank_conflicts) {
  run_tile<Layout::rows>(1);
  expect_counts("ldmatrix", 8 * 4 * 8, 8 * 4 * 7);  // eight rows of a matrix in the same four banks
  expect_counts("cp.async", 32, 0);
  run_tile<Layout::swizzled>(3);
  expect_counts("ldmatrix", 3 * 8 * 4, 0);
  expect_counts("cp.async", 3 * 32, 0);
  run_tile<Layout::padded>(1);
  expect_counts("ldmatrix", 8 * 4, 0);
  expect_counts("cp.async", 32, 0);

  run_pieces(1);
  expect_counts("store", 4, 0);
  expect_counts("load", 4, 0);
  expect_counts("cp.async", 1, 0);
  run_pieces(2);
  expect_counts("store", 8, 4);
  expect_counts("load", 8, 4);
  expect_counts("cp.async", 2, 1);
  run_pieces(8);
  expect_counts("store", 32, 28);
  expect_counts("load", 32, 28);
  expect_counts("cp.async", 8, 7);
  film_emulator_reset_counters();
  expect_counts("load", 0, 0);
}

// For the test that reads the report.
CHECK(bank_report) {
  run_tile<Layout::rows>(1);
  film_emulator_report();
}
