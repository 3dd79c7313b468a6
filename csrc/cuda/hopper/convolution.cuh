// CUTLASS's implicit matrix product for Hopper: the tensor memory accelerator loads patches (im2col) and weights, one
// warpgroup multiplies with wgmma, and Node makes y and the bits of the sums.
//
// It has no persistent schedule for convolutions, in which the end of a tile would overlap with the next one's
// products: the smaller tiles have few enough registers and stages that other blocks of the multiprocessor fill that
// time.
#pragma once

// clang-format off: these come first, for other headers of CUTLASS need them and do not include them.
#include <cutlass/cutlass.h>
#include <cutlass/kernel_hardware_info.hpp>
// clang-format on

#include <cutlass/conv/convolution.h>
#include <cutlass/device_kernel.h>
#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/convnd_problem_shape.hpp>
#include <cutlass/conv/dispatch_policy.hpp>
#include <cutlass/conv/kernel/conv_universal.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/collective/default_epilogue.hpp>
#include <type_traits>

#include "../hopper.h"
#include "node.cuh"

namespace film::cuda::hopper {

using cute::Int, cute::Shape, cute::_1, cute::_64;

constexpr int kPacketChannels = 8;  // 16 bytes

template <class T>
using ElementOf = std::conditional_t<std::is_same_v<T, __half>, cutlass::half_t, cutlass::bfloat16_t>;

// One kernel: element type and a tile of kTiles.
template <class T, int kTile>
struct Convolution {
  static constexpr Tile kShape = kTiles[kTile];
  using Element = ElementOf<T>;
  using Layout = cutlass::layout::TensorNHWC;
  using TileShape = Shape<Int<kShape.rows>, Int<kShape.columns>, Shape<_64>>;
  using Cluster = Shape<_1, _1, _1>;
  using Fusion = cutlass::epilogue::fusion::Sm90EVT<Node<T>, cutlass::epilogue::fusion::Sm90AccFetch>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Layout, kPacketChannels, Element, Layout,
      kPacketChannels, cutlass::epilogue::TmaWarpSpecialized, Fusion>::CollectiveOp;
  // All shared memory for a block that is alone, and 4 stages where there are others.
  using Stages =
      std::conditional_t<kShape.resident == 1,
                         cutlass::conv::collective::StageCountAutoCarveout<sizeof(typename Epilogue::SharedStorage)>,
                         cutlass::conv::collective::StageCount<4>>;
  using Mainloop = typename cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, cutlass::conv::Operator::kFprop, Element, Layout,
      kPacketChannels, Element, Layout, kPacketChannels, float, TileShape, Cluster, Stages,
      cutlass::conv::KernelImplicitTmaWarpSpecializedSm90>::CollectiveOp;
  using ProblemShape =
      cutlass::conv::ConvProblemShape<Mainloop::DispatchPolicy::ConvOp, Mainloop::DispatchPolicy::NumSpatialDimensions>;
  using Kernel = cutlass::conv::kernel::ConvUniversal<ProblemShape, Mainloop, Epilogue>;
  static constexpr int kSharedOfMultiprocessor = 228 * 1024, kSharedOfBlockItself = 1024;
  static_assert(kShape.resident * (Kernel::SharedStorageSize + kSharedOfBlockItself) <= kSharedOfMultiprocessor);

  static ProblemShape shape_of(const Problem& p) {
    const auto narrow = [](int64_t v) { return static_cast<int>(v); };
    return {cutlass::conv::Mode::kCrossCorrelation,
            {narrow(p.batch), narrow(p.h.in), narrow(p.w.in), narrow(p.in_channels)},
            {narrow(p.out_channels), narrow(p.h.kernel), narrow(p.w.kernel), narrow(p.in_channels)},
            {narrow(p.h.pad), narrow(p.w.pad)},
            {narrow(padding_after(p.h)), narrow(padding_after(p.w))},
            {narrow(p.h.stride), narrow(p.w.stride)},
            {narrow(p.h.dilation), narrow(p.w.dilation)},
            1};
  }

  static typename Kernel::Arguments arguments_of(const Problem& p, const ForwardArgs& args) {
    typename Kernel::Arguments a{
        shape_of(p), {static_cast<const Element*>(args.input.data), static_cast<const Element*>(args.weight.data)}, {}};
    a.epilogue.ptr_D = static_cast<Element*>(args.output.data);
    cute::get<0, 0>(a.epilogue.dD) = a.problem_shape.stride_C[2];  // (w, h, n), channels side by side
    cute::get<0, 1>(a.epilogue.dD) = a.problem_shape.stride_C[1];
    cute::get<0, 2>(a.epilogue.dD) = a.problem_shape.stride_C[0];
    a.epilogue.thread = {
        {}, {modulation_of<T>(p, args.bias, args.gamma, args.beta), args.bits, static_cast<int>(p.h.out * p.w.out)}};
    return a;
  }
};

}  // namespace film::cuda::hopper
