// Bias, activation, FiLM and bits as a node of CUTLASS's epilogue: what becomes of the sums between the tensor cores'
// registers and the tile in shared memory that is stored.
//
// A thread of a warpgroup holds pairs of neighbouring channels of a position, and four neighbouring threads hold eight
// channels: a byte of bits (tests/hopper_checks.cu looks at the layout).
#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/fast_math.h>

#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>

#include "../modulate.cuh"

namespace film::cuda::hopper {

__device__ __forceinline__ float2 to_floats(uint32_t pair, __nv_bfloat16) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ __forceinline__ float2 to_floats(uint32_t pair, __half) {
  __half2 halves;
  memcpy(&halves, &pair, sizeof(pair));
  return __half22float2(halves);
}

// Two neighbouring channels of a factor whose channels lie side by side, rows from a multiple of 4 bytes on.
template <class T>
__device__ __forceinline__ float2 pair_at(const Factor<T>& f, int64_t sample, int channel) {
  if (f.data == nullptr) return {f.otherwise, f.otherwise};
  return to_floats(__ldg(reinterpret_cast<const uint32_t*>(f.data + sample * f.n + channel)), T());
}

template <class T>
struct Node {
  struct SharedStorage {};
  struct Arguments {
    Modulation<T> modulate;
    uint8_t* bits;
    int out_positions;  // of a sample
  };
  struct Params {
    Modulation<T> modulate;
    uint8_t* bits;
    cutlass::FastDivmod out_positions;
  };

  template <class Shape>
  static constexpr Params to_underlying_arguments(const Shape&, const Arguments& a, void*) {
    return {a.modulate, a.bits, cutlass::FastDivmod(a.out_positions)};
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments&) {
    return true;
  }
  template <class Shape>
  static size_t get_workspace_size(const Shape&, const Arguments&) {
    return 0;
  }
  template <class Shape>
  static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  const Params* params = nullptr;
  CUTLASS_HOST_DEVICE Node() {}
  CUTLASS_HOST_DEVICE Node(const Params& p, const SharedStorage&) : params(&p) {}
  CUTLASS_DEVICE bool is_producer_load_needed() const { return false; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return false; }
  template <class... A>
  CUTLASS_DEVICE auto get_producer_load_callbacks(const cutlass::epilogue::fusion::ProducerLoadArgs<A...>&) {
    return cutlass::epilogue::fusion::EmptyProducerLoadCallbacks{};
  }

  // `places` are where this thread's elements stand in the block's tile, and `residue` is where positions and channels
  // end, counted from the first of them.
  template <class Places, class Residue>
  struct Callbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    Places places;
    Residue residue;
    int positions, channels;
    const Params& params;

    CUTLASS_DEVICE Callbacks(Places places, Residue residue, int positions, int channels, const Params& params)
        : places(places), residue(residue), positions(positions), channels(channels), params(params) {}

    template <class Sum, class In, int Count>
    CUTLASS_DEVICE cutlass::Array<float, Count> visit(const cutlass::Array<Sum, Count>&, int fragment, int epi_m,
                                                      int epi_n, const cutlass::Array<In, Count>& sums) {
      static_assert(Count % 2 == 0, "channels come in pairs");
      cutlass::Array<float, Count> values;
      const auto at = places(cute::_, cute::_, cute::_, epi_m, epi_n);
      const Modulation<T>& by = params.modulate;
      int position[Count / 2], k[Count / 2];
      float2 bias[Count / 2], gamma[Count / 2], beta[Count / 2];
      // All factors are asked for before any is used, those past the end at a place that is there.
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < Count / 2; ++pair) {
        const auto place = at(fragment * Count + 2 * pair);
        position[pair] = positions - static_cast<int>(cute::get<0>(residue)) + static_cast<int>(cute::get<0>(place));
        k[pair] = channels - static_cast<int>(cute::get<1>(residue)) + static_cast<int>(cute::get<1>(place));
        const int channel = min(k[pair], channels - 2);
        const int64_t sample = params.out_positions.div(min(position[pair], positions - 1));
        bias[pair] = pair_at(by.bias, 0, channel);
        gamma[pair] = pair_at(by.gamma, sample, channel);
        beta[pair] = pair_at(by.beta, sample, channel);
      }
      const PiecewiseLinear act{by.lower_slope, by.activation == static_cast<int>(Activation::relu)};
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < Count / 2; ++pair) {
        const int i = 2 * pair;
        const bool inside = position[pair] < positions && k[pair] < channels;
        bool first, second;
        values[i] = by(act, sums[i] + bias[pair].x, gamma[pair].x + by.gamma_offset, beta[pair].x, first);
        values[i + 1] = by(act, sums[i + 1] + bias[pair].y, gamma[pair].y + by.gamma_offset, beta[pair].y, second);
        if (params.bits == nullptr) continue;
        unsigned byte = (first ? 1u : 0u) | (second ? 2u : 0u);
        byte <<= 2 * (threadIdx.x % 4);
        byte |= __shfl_xor_sync(0xffffffffu, byte, 1);
        byte |= __shfl_xor_sync(0xffffffffu, byte, 2);
        if (threadIdx.x % 4 == 0 && inside)
          params.bits[static_cast<int64_t>(position[pair]) * (channels / 8) + k[pair] / 8] = static_cast<uint8_t>(byte);
      }
      return values;
    }
  };

  template <bool ReferenceSource, class... A>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const cutlass::epilogue::fusion::ConsumerStoreArgs<A...>& a) {
    return Callbacks<decltype(a.tCcD), decltype(a.residue_tCcD)>(
        a.tCcD, a.residue_tCcD, static_cast<int>(cute::size<0>(a.problem_shape_mnkl)),
        static_cast<int>(cute::size<1>(a.problem_shape_mnkl)), *params);
  }
};

}  // namespace film::cuda::hopper
