// Packets on their way into shared memory while others are worked on. So many have to be that registers would not hold
// them: a card moves its memory's full rate only where some 30 KiB are asked for at a time in each multiprocessor. Each
// thread has places of its own and reads only what it has asked for itself: nobody has to wait for anybody.
#pragma once

#include "norm_packets.cuh"

namespace film::cuda {

template <class T, int V>
__device__ __forceinline__ void copy_packet(Packet<T, V>* to, const T* from) {
  if constexpr (V == 1)
    *to = *from;
  else if constexpr (sizeof(Packet<T, V>) == 16)
    ptx::cp_async_16(to, from, true);
  else
    ptx::cp_async_8(to, from, true);
}

// All `count` packets of a thread, `step` elements apart, kept at `threads` packets from each other from `held` on.
template <class T, int V>
__device__ __forceinline__ void hold(Packet<T, V>* held, int threads, const T* from, int64_t step, int count) {
  for (int j = 0; j < count; ++j) copy_packet<T, V>(held + j * threads, from + j * step);
}

__device__ __forceinline__ void wait_for_held() {
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

// A walk over the packets of some tensors, one of each at a time.
template <class T, int V, int TENSORS>
class Ahead {
 public:
  // Of a packet each; single elements are read as they are needed.
  static constexpr int kPlaces = V == 1 ? 0 : 8 / TENSORS;

  static size_t bytes(int threads) { return static_cast<size_t>(kPlaces) * TENSORS * threads * sizeof(Packet<T, V>); }

  __device__ __forceinline__ Ahead(void* shared, const T* const (&from)[TENSORS], const int64_t (&steps)[TENSORS],
                                   int count)
      : places_(static_cast<Packet<T, V>*>(shared) + threadIdx.x), count_(count) {
#pragma unroll
    for (int t = 0; t < TENSORS; ++t) from_[t] = from[t], steps_[t] = steps[t];
    for (int j = 0; j + 1 < kPlaces; ++j) ask(j);
  }

  // Packets `j`; calls are for 0, 1, ... in turn.
  __device__ __forceinline__ void take(int j, Packet<T, V> (&found)[TENSORS]) {
    if constexpr (V == 1) {
#pragma unroll
      for (int t = 0; t < TENSORS; ++t) found[t] = load<T, V>(from_[t]), from_[t] += steps_[t];
    } else {
      ptx::cp_async_wait<kPlaces - 2>();
#pragma unroll
      for (int t = 0; t < TENSORS; ++t) found[t] = *place(j, t);
      ask(j + kPlaces - 1);  // where the packet before this one was
    }
  }

 private:
  __device__ __forceinline__ Packet<T, V>* place(int j, int tensor) const {
    return places_ + (j % (V == 1 ? 1 : kPlaces) * TENSORS + tensor) * static_cast<int>(blockDim.x);
  }

  __device__ __forceinline__ void ask(int j) {
    if constexpr (V == 1) return;
    if (j < count_) {
#pragma unroll
      for (int t = 0; t < TENSORS; ++t) copy_packet<T, V>(place(j, t), from_[t]), from_[t] += steps_[t];
    }
    ptx::cp_async_commit();
  }

  Packet<T, V>* places_;
  const T* from_[TENSORS];  // the next to be asked for
  int64_t steps_[TENSORS];
  int count_;
};

}  // namespace film::cuda
