// The host side of the kernels in csrc/cuda/hopper, without a GPU. It prints how a tile's sums lie in registers and,
// for each line of numbers on the standard input, whether CUTLASS can do every kernel, whether the driver would take
// what it is asked for, and the output's shape. The driver's functions for descriptors are the ones below, which look
// at them.
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL
#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "hopper/convolution.cuh"

namespace {

using namespace film;
using namespace film::cuda::hopper;

const Problem* asked = nullptr;  // what descriptors are made for now, of these addresses
constexpr uintptr_t kInput = 1 << 20, kWeight = 2 << 20, kOutput = 3 << 20;
int made = 0, wrong = 0;

void expect(bool holds, const char* what) {
  if (!holds && wrong++ == 0) std::fprintf(stderr, "%s\n", what);
}

// What any descriptor must be like, by the driver's manual.
void look_at(cuuint32_t rank, const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* steps) {
  ++made;
  for (cuuint32_t d = 0; d < rank; ++d) {
    expect(sizes[d] >= 1 && sizes[d] <= uint64_t(1) << 32, "a size of a descriptor");
    expect(steps[d] >= 1 && steps[d] <= 8, "a step of a descriptor");
    if (d + 1 < rank) expect(strides[d] % 16 == 0 && strides[d] < uint64_t(1) << 40, "a stride of a descriptor");
  }
}

}  // namespace

// Of weights: (C, kw, kh, K), dense, or with neighbouring dimensions joined.
extern "C" CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* address,
                                           const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                           const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle,
                                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  look_at(rank, sizes, strides, steps);
  uint64_t elements = 1;
  for (cuuint32_t d = 0; d < rank; ++d) {
    elements *= sizes[d];
    expect(box[d] >= 1 && box[d] <= 256, "a box");
  }
  const Problem& p = *asked;
  expect(reinterpret_cast<uintptr_t>(address) == kWeight, "the weight's address");
  expect(elements == uint64_t(p.out_channels * p.in_channels * p.h.kernel * p.w.kernel), "the weight's elements");
  return CUDA_SUCCESS;
}

// Of input and output: (channels, w, h, n), dense. The first patch begins at the lower corner, and there are as many as
// steps between the corners.
extern "C" CUresult cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* address,
                                            const cuuint64_t* sizes, const cuuint64_t* strides, const int* lower,
                                            const int* upper, cuuint32_t channels, cuuint32_t pixels,
                                            const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle,
                                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  look_at(rank, sizes, strides, steps);
  const Problem& p = *asked;
  const bool is_input = reinterpret_cast<uintptr_t>(address) == kInput;
  expect(is_input || reinterpret_cast<uintptr_t>(address) == kOutput, "an address");
  expect(rank == 4 && channels <= 256 && pixels <= 1024, "what a descriptor loads at once");
  const Axis* axes[] = {&p.w, &p.h};
  const auto width = uint64_t(is_input ? p.in_channels : p.out_channels);
  uint64_t stride = 2 * width;  // bytes
  expect(sizes[0] == width && sizes[3] == uint64_t(p.batch), "channels and samples");
  for (int d = 0; d < 2; ++d) {
    const Axis& a = *axes[d];
    expect(strides[d] == stride && sizes[d + 1] == uint64_t(is_input ? a.in : a.out), "an axis");
    stride *= sizes[d + 1];
    for (const int corner : {lower[d], upper[d]}) expect(corner >= -128 && corner <= 127, "a corner");
    const int64_t between = int64_t(sizes[d + 1]) + upper[d] - lower[d];
    expect(lower[d] == (is_input ? -a.pad : 0) && steps[d + 1] == (is_input ? a.stride : 1), "where patches begin");
    expect((between - 1) / int64_t(steps[d + 1]) + 1 == a.out, "how many patches there are");
  }
  expect(strides[2] == stride, "the stride of samples");
  return CUDA_SUCCESS;
}

namespace {

// What Node takes for granted: a thread's sums are pairs of neighbouring channels, and those of four neighbouring
// threads the eight channels of one byte.
template <class C>
bool lies_in_bytes() {
  const typename C::Mainloop::TiledMma multiply;
  const auto layout = multiply.get_layoutC_TV();
  const int rows = cute::tile_size<0>(multiply);
  for (int thread = 0; thread < cute::size<0>(layout); ++thread)
    for (int value = 0; value < cute::size<1>(layout); ++value) {
      const int place = layout(thread, value), row = place % rows, channel = place / rows;
      const int first = layout(thread / 4 * 4, value / 2 * 2), first_channel = first / rows;
      if (row != first % rows || first_channel % 8 != 0 || channel != first_channel + thread % 4 * 2 + value % 2)
        return false;
    }
  return true;
}

ForwardArgs addresses() {
  ForwardArgs args{};
  args.input.data = reinterpret_cast<void*>(kInput);
  args.weight.data = reinterpret_cast<void*>(kWeight);
  args.output.data = reinterpret_cast<void*>(kOutput);
  return args;
}

template <class C>
void describe() {
  const Axis one{1, 1, 1, 1, 0, 1};
  const Problem p{1, 8, 8, 1, one, one, DType::bf16, Activation::relu, Position::post, 0, 0};
  std::printf("tile %d x %d: in bytes %d, stages %d, shared %d, threads %d, workspace %d\n", C::kShape.rows,
              C::kShape.columns, lies_in_bytes<C>(), C::Mainloop::DispatchPolicy::Stages, C::Kernel::SharedStorageSize,
              int(C::Kernel::MaxThreadsPerBlock), int(C::Kernel::get_workspace_size(C::arguments_of(p, {}))));
}

// Whether CUTLASS can, and if so that all three descriptors are right, and that the grid covers the output.
template <class C>
bool can(const Problem& p) {
  const auto arguments = C::arguments_of(p, addresses());
  if (!C::Kernel::can_implement(arguments)) return false;
  asked = &p, made = 0;
  const auto params = C::Kernel::to_underlying_arguments(arguments, nullptr);
  expect(made == 3, "descriptors of input, weight and output");
  const dim3 grid = C::Kernel::get_grid_shape(params);
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  expect(grid.x == up(p.positions(), C::kShape.rows) && grid.y == up(p.out_channels, C::kShape.columns) && grid.z == 1,
         "the grid");
  return true;
}

template <class T>
void answer(const Problem& p) {
  const auto out = Convolution<T, 0>::shape_of(p).shape_C;
  wrong = 0;
  const bool first = can<Convolution<T, 0>>(p), second = can<Convolution<T, 1>>(p), third = can<Convolution<T, 2>>(p);
  std::printf("%d %d %d %d %d %d %d %d\n", first, second, third, wrong, out[0], out[3], out[1], out[2]);
}

}  // namespace

int main() {
  static_assert(kTileCount == 3);
  describe<Convolution<__nv_bfloat16, 0>>();
  describe<Convolution<__nv_bfloat16, 1>>();
  describe<Convolution<__nv_bfloat16, 2>>();
  Problem p{};
  p.groups = 1, p.dtype = DType::bf16;
  Axis &h = p.h, &w = p.w;
  const auto read = [](auto&... numbers) { return (... && (std::scanf("%ld", &numbers) == 1)); };
  while (read(p.batch, p.in_channels, p.out_channels, h.in, h.kernel, h.stride, h.dilation, h.pad, h.out, w.in,
              w.kernel, w.stride, w.dilation, w.pad, w.out))
    answer<__nv_bfloat16>(p);
}
