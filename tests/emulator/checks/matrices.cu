// ldmatrix and mma: each fragment by where the PTX manual puts its elements, and whole products through shared memory.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "check.h"

using namespace film::check;
namespace ptx = film::ptx;

namespace {

struct Fragments {
  const uint32_t *a, *b;  // 4 and 2 for each lane
  float* d;               // 4
};

enum class Type { f16, bf16, tf32 };

template <Type type>
__global__ void multiply_fragments(const Fragments p) {
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = p.a[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; ++i) b[i] = p.b[threadIdx.x * 2 + i];
  for (int i = 0; i < 4; ++i) d[i] = p.d[threadIdx.x * 4 + i];
  if constexpr (type == Type::f16) ptx::mma_f16(d, a, b);
  if constexpr (type == Type::bf16) ptx::mma_bf16(d, a, b);
  if constexpr (type == Type::tf32) ptx::mma_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[threadIdx.x * 4 + i] = d[i];
}

// Small integers and quarters: exact in every type, and so are their sums.
float element(int row, int column) { return static_cast<float>((row * 7 + column * 13) % 19 - 9) / 4; }

uint32_t bits_of(Type type, float value) {
  if (type == Type::f16) return __half_as_ushort(__float2half_rn(value));
  if (type == Type::bf16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return __float_as_uint(value);
}

template <Type type>
void check_fragments() {
  constexpr int k = type == Type::tf32 ? 8 : 16;
  uint32_t a[32][4] = {}, b[32][2] = {};
  float d[32][4];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, in_group = lane % 4;
    if (type == Type::tf32) {
      for (int i = 0; i < 4; ++i) {
        const int row = i == 0 || i == 2 ? group : group + 8, column = i < 2 ? in_group : in_group + 4;
        a[lane][i] = bits_of(type, element(row, column)) | 0x1fff;  // low bits that must not count
      }
      for (int i = 0; i < 2; ++i) b[lane][i] = bits_of(type, element(in_group + 4 * i, group + 50));
    } else {
      for (int i = 0; i < 8; ++i) {
        const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a[lane][i / 2] |= bits_of(type, element(row, column)) << i % 2 * 16;
      }
      for (int i = 0; i < 4; ++i) {
        const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        b[lane][i / 2] |= bits_of(type, element(row, group + 50)) << i % 2 * 16;
      }
    }
    for (int i = 0; i < 4; ++i) d[lane][i] = element(group + i / 2 * 8 + 100, in_group * 2 + (i & 1));
  }
  const auto error =
      film::cuda::launch(multiply_fragments<type>, dim3(1), dim3(32), 0, nullptr, Fragments{a[0], b[0], d[0]});
  expect(error == cudaSuccess, "launch: %d", error);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
      float sum = element(row + 100, column);
      for (int j = 0; j < k; ++j) sum += element(row, j) * element(j, column + 50);
      expect(d[lane][i] == sum, "lane %d, d%d: %g, not %g", lane, i, d[lane][i], sum);
    }
}

// ---- ldmatrix ----

struct Load {
  const uint16_t* matrices;  // 4 of 8 x 8
  uint32_t* fragments;       // 4 for each lane
};

template <int count, bool trans>
__global__ void load(const Load p) {
  // Rows of 8 halves, 48 bytes apart: a row may stand anywhere.
  unsigned char* shared = ptx::shared_memory<unsigned char>();
  std::memcpy(shared + threadIdx.x * 48, p.matrices + threadIdx.x * 8, 16);
  __syncwarp();
  uint32_t r[count];
  const unsigned row = count == 2 ? threadIdx.x % 16 : threadIdx.x;
  if constexpr (count == 2 && !trans) ptx::ldmatrix_x2(r, shared + row * 48);
  if constexpr (count == 2 && trans) ptx::ldmatrix_x2_trans(r, shared + row * 48);
  if constexpr (count == 4 && !trans) ptx::ldmatrix_x4(r, shared + row * 48);
  if constexpr (count == 4 && trans) ptx::ldmatrix_x4_trans(r, shared + row * 48);
  for (int i = 0; i < count; ++i) p.fragments[threadIdx.x * count + i] = r[i];
}

template <int count, bool trans>
void check_load() {
  uint16_t matrices[4][8][8];
  for (int m = 0; m < 4; ++m)
    for (int r = 0; r < 8; ++r)
      for (int c = 0; c < 8; ++c) matrices[m][r][c] = static_cast<uint16_t>(m * 1000 + r * 10 + c);
  uint32_t fragments[32][count];
  const auto error =
      film::cuda::launch(load<count, trans>, dim3(1), dim3(32), 32 * 48, nullptr, Load{matrices[0][0], fragments[0]});
  expect(error == cudaSuccess, "launch: %d", error);
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < count; ++m) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = trans ? matrices[m][column][row] : matrices[m][row][column];
      const uint32_t high = trans ? matrices[m][column + 1][row] : matrices[m][row][column + 1];
      expect(fragments[lane][m] == (low | high << 16), "lane %d, matrix %d: %08x", lane, m, fragments[lane][m]);
    }
}

// ---- a 16 x 8 product through shared memory, as a kernel makes it ----

struct Product {
  const void *a, *b;  // (16, 32 bytes) and (8, 32 bytes): b by columns; or by rows, (16, 16 bytes), with trans
  float* d;           // (16, 8)
};

template <Type type, bool trans>
__global__ void product(const Product p) {
  unsigned char* shared = ptx::shared_memory<unsigned char>();
  const unsigned lane = threadIdx.x;
  ptx::cp_async_16(shared + lane * 16, static_cast<const unsigned char*>(p.a) + lane * 16, true);
  if (lane < 16) ptx::cp_async_16(shared + 512 + lane * 16, static_cast<const unsigned char*>(p.b) + lane * 16, true);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();
  uint32_t a[4], b[2];
  float d[4] = {};
  ptx::ldmatrix_x4(a, shared + lane % 16 * 32 + lane / 16 * 16);
  if constexpr (trans) {
    ptx::ldmatrix_x2_trans(b, shared + 512 + lane % 16 * 16);
  } else {
    ptx::ldmatrix_x2(b, shared + 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
  }
  if constexpr (type == Type::f16) ptx::mma_f16(d, a, b);
  if constexpr (type == Type::bf16) ptx::mma_bf16(d, a, b);
  if constexpr (type == Type::tf32) ptx::mma_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <class T, Type type, bool trans>
void check_product() {
  constexpr int k = 32 / sizeof(T);
  Buffer<T> a(16 * k), b(8 * k);
  Buffer<float> d(16 * 8);
  for (int row = 0; row < 16; ++row)
    for (int j = 0; j < k; ++j) a[row * k + j] = static_cast<T>(element(row, j));
  for (int column = 0; column < 8; ++column)
    for (int j = 0; j < k; ++j) b[trans ? j * 8 + column : column * k + j] = static_cast<T>(element(j, column + 50));
  const auto error =
      film::cuda::launch(product<type, trans>, dim3(1), dim3(32), 768, nullptr, Product{a, b, static_cast<float*>(d)});
  expect(error == cudaSuccess, "launch: %d", error);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int j = 0; j < k; ++j) sum += element(row, j) * element(j, column + 50);
      expect(d[row * 8 + column] == sum, "(%d, %d): %g, not %g", row, column, d[row * 8 + column], sum);
    }
}

}  // namespace

CHECK(mma_f16_fragments) { check_fragments<Type::f16>(); }
CHECK(mma_bf16_fragments) { check_fragments<Type::bf16>(); }
CHECK(mma_tf32_fragments) { check_fragments<Type::tf32>(); }
CHECK(ldmatrix_x2) { check_load<2, false>(); }
CHECK(ldmatrix_x2_trans) { check_load<2, true>(); }
CHECK(ldmatrix_x4) { check_load<4, false>(); }
CHECK(ldmatrix_x4_trans) { check_load<4, true>(); }
CHECK(product_f16) { check_product<__half, Type::f16, false>(); }
CHECK(product_f16_trans) { check_product<__half, Type::f16, true>(); }
CHECK(product_bf16) { check_product<__nv_bfloat16, Type::bf16, false>(); }
CHECK(product_bf16_trans) { check_product<__nv_bfloat16, Type::bf16, true>(); }
CHECK(product_tf32) { check_product<float, Type::tf32, false>(); }
