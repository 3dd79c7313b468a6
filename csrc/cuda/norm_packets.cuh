// What the kernels of norm_film have in common: packets of elements, the factors and statistics that belong to one, and
// what is made of it.
//
// A packet has V elements side by side: channels of a position where PIXELS, and then the factors vary along it; or
// else positions of a channel. Statistics of positions vary the other way round.
#pragma once

#include <launch.cuh>
#include <ptx.cuh>
#include <type_traits>

#include "activate.cuh"
#include "elements.cuh"
#include "norm_kernels.h"

namespace film::cuda {

template <class T, int V>
using Packet = std::conditional_t<V == 1, T, std::conditional_t<sizeof(T) == 4, uint4, uint2>>;

template <class T, int V>
__device__ __forceinline__ Packet<T, V> load(const T* at) {
  return *reinterpret_cast<const Packet<T, V>*>(at);
}

template <class T, int V>
__device__ __forceinline__ void widen(const Packet<T, V>& packet, float (&values)[V]) {
  T elements[V];
  memcpy(elements, &packet, sizeof(packet));
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = to_float(elements[i]);
}

template <class T, int V>
__device__ __forceinline__ void store(T* at, const float (&values)[V]) {
  T elements[V];
#pragma unroll
  for (int i = 0; i < V; ++i) elements[i] = from_float<T>(values[i]);
  Packet<T, V> packet;
  memcpy(&packet, elements, sizeof(packet));
  *reinterpret_cast<Packet<T, V>*>(at) = packet;
}

// V numbers, or one that stands for all.
template <int V, bool VARY>
struct Along {
  float values[VARY ? V : 1];

  __device__ __forceinline__ float operator[](int i) const { return values[VARY ? i : 0]; }
};

template <class T>
struct Strided {
  T* data;
  int64_t n, c, p;

  __device__ __forceinline__ T* at(int64_t sample, int64_t channel, int64_t position) const {
    return data + sample * n + channel * c + position * p;
  }
};

template <class T>
Strided<T> strided(const Cube& cube) {
  return {static_cast<T*>(cube.data), cube.n, cube.c, cube.p};
}

// weight or bias (C), gamma or beta (N, C), of float32 or of T, or what stands for it where there is none.
template <class T>
struct NormFactor {
  const void* data;
  int64_t n, k;  // strides
  float otherwise;
  bool wide;    // of float32
  bool packed;  // may be read in packets

  __device__ __forceinline__ float at(int64_t sample, int64_t channel) const {
    const int64_t i = sample * n + channel * k;
    return data == nullptr ? otherwise
           : wide          ? static_cast<const float*>(data)[i]
                           : to_float(static_cast<const T*>(data)[i]);
  }

  // Of `count` channels of a packet.
  template <int V, bool VARY>
  __device__ __forceinline__ Along<V, VARY> read(int64_t sample, int64_t channel) const {
    Along<V, VARY> found;
    if constexpr (VARY && V > 1) {
      if (packed && data != nullptr) {
        const int64_t i = sample * n + channel;
        if (wide)
          widen<float, V>(load<float, V>(static_cast<const float*>(data) + i), found.values);
        else
          widen<T, V>(load<T, V>(static_cast<const T*>(data) + i), found.values);
        return found;
      }
    }
#pragma unroll
    for (int e = 0; e < (VARY ? V : 1); ++e) found.values[e] = at(sample, channel + e);
    return found;
  }
};

template <class T>
NormFactor<T> norm_factor(const Matrix& m, float otherwise, bool wide) {
  const size_t bytes = kNormPacket * (wide ? sizeof(float) : sizeof(T));
  const bool packed = m.k == 1 && m.n % kNormPacket == 0 && reinterpret_cast<uintptr_t>(m.data) % bytes == 0;
  return {m.data, m.n, m.k, otherwise, wide, packed};
}

template <class T>
struct NormParams {
  Strided<const T> x, grad;
  Strided<T> out;  // y or dx
  int batch, channels;
  int64_t positions;
  NormFactor<T> weight, bias, gamma, beta;
  float gamma_offset, lower_slope, eps;
  int activation;
  bool post;
  Norm norm;
  int groups, each;    // of a sample, and channels of one
  int64_t statistics;  // how many
  const float* kept;   // them

  __device__ __forceinline__ bool takes_mean() const {
    return norm == Norm::group || norm == Norm::batch || norm == Norm::channel;
  }
  __device__ __forceinline__ float rstd_of(float second) const {
    if (norm == Norm::none) return 1;
    return 1 / (norm == Norm::l2 ? (second < eps ? eps : second) : sqrtf(second + eps));
  }
};

template <class T>
NormParams<T> norm_params(const NormProblem& p, const NormFactors& by, const Cube& input) {
  NormParams<T> params{};
  params.x = strided<const T>(input);
  params.batch = static_cast<int>(p.batch), params.channels = static_cast<int>(p.channels);
  params.positions = p.positions;
  const bool wide = p.parameter_dtype == DType::f32 && p.dtype != DType::f32;
  params.weight = norm_factor<T>({by.weight.data, 0, by.weight.k}, 1, wide);
  params.bias = norm_factor<T>({by.bias.data, 0, by.bias.k}, 0, wide);
  params.gamma = norm_factor<T>(by.gamma, 1, false);
  params.beta = norm_factor<T>(by.beta, 0, false);
  params.gamma_offset = static_cast<float>(p.gamma_offset);
  params.lower_slope = static_cast<float>(p.lower_slope);
  params.eps = static_cast<float>(p.eps);
  params.activation = static_cast<int>(p.activation);
  params.post = p.position == Position::post;
  params.norm = p.norm;
  params.groups = p.norm == Norm::group ? static_cast<int>(p.groups) : 1;
  params.each = params.channels / params.groups;
  params.statistics = p.statistics();
  return params;
}

// Where the statistics of a channel of a sample stand, if they are not of positions.
template <class T>
__device__ __forceinline__ int group_of(const NormParams<T>& p, int n, int c) {
  return p.norm == Norm::batch ? c : n * p.groups + c / p.each;
}

// FiLM's own factors of a packet; scale is gamma + gamma_offset.
template <int V, bool PIXELS>
struct PacketFilm {
  Along<V, PIXELS> scale, shift;

  template <class T>
  __device__ __forceinline__ PacketFilm(const NormParams<T>& p, int64_t n, int64_t c)
      : scale(p.gamma.template read<V, PIXELS>(n, c)), shift(p.beta.template read<V, PIXELS>(n, c)) {
#pragma unroll
    for (float& s : scale.values) s += p.gamma_offset;
  }
};

// What makes of a packet of xhat the activation's argument: the norm's own affine, and FiLM with it where that comes
// before the activation.
template <int V, bool PIXELS>
struct PacketFactors {
  Along<V, PIXELS> scale, shift;

  template <class T>
  __device__ __forceinline__ void read(const NormParams<T>& p, int64_t n, int64_t c) {
    scale = p.weight.template read<V, PIXELS>(0, c);
    shift = p.bias.template read<V, PIXELS>(0, c);
    if (p.post) return;
    const PacketFilm<V, PIXELS> film(p, n, c);
#pragma unroll
    for (int e = 0; e < (PIXELS ? V : 1); ++e) {
      scale.values[e] *= film.scale[e];
      shift.values[e] = shift[e] * film.scale[e] + film.shift[e];
    }
  }
};

// Its statistics.
template <int V, bool VARY>
struct PacketStatistics {
  static constexpr int kCount = VARY ? V : 1;
  Along<V, VARY> mean, rstd;

  // Where they are of groups or of channels.
  template <class T>
  __device__ __forceinline__ void read(const NormParams<T>& p, int n, int c) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) take(p, e, group_of(p, n, c + e));
  }
  // Of positions.
  template <class T>
  __device__ __forceinline__ void read_position(const NormParams<T>& p, int64_t n, int64_t position) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) take(p, e, n * p.positions + position + e);
  }

 private:
  template <class T>
  __device__ __forceinline__ void take(const NormParams<T>& p, int e, int64_t at) {
    const bool any = p.norm != Norm::none;
    mean.values[e] = any && p.takes_mean() ? p.kept[at] : 0.f;
    rstd.values[e] = any ? p.rstd_of(p.kept[at + (p.takes_mean() ? p.statistics : 0)]) : 1.f;
  }
};

// y of a packet of channel c on, in place of x.
template <int V, bool PIXELS, bool VARY, class T, class Act>
__device__ __forceinline__ void modulate(const NormParams<T>& p, const Act& act, const PacketFactors<V, PIXELS>& by,
                                         const PacketStatistics<V, VARY>& of, int64_t n, int64_t c, float (&x)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = act.value(by.scale[i] * ((x[i] - of.mean[i]) * of.rstd[i]) + by.shift[i]);
  if (!p.post) return;
  const PacketFilm<V, PIXELS> film(p, n, c);
#pragma unroll
  for (int i = 0; i < V; ++i) x[i] = film.scale[i] * x[i] + film.shift[i];
}

// Of a packet of x and grad: xhat in place of x, and d = grad * act'(v) in place of grad. With `more`, also what dgamma
// sums where FiLM comes after the activation, grad * act(v).
template <int V, bool PIXELS, bool VARY, class Act>
__device__ __forceinline__ void differentiate(const Act& act, const PacketFactors<V, PIXELS>& by,
                                              const PacketStatistics<V, VARY>& of, float (&x)[V], float (&grad)[V],
                                              float (*more)[V] = nullptr) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    x[i] = (x[i] - of.mean[i]) * of.rstd[i];
    const float v = by.scale[i] * x[i] + by.shift[i];
    if (more != nullptr) (*more)[i] = grad[i] * act.value(v);
    grad[i] = act.gradient(grad[i], v);
  }
}

// The gradient of xhat, in place of d.
template <int V, bool PIXELS, class T>
__device__ __forceinline__ void scale_gradient(const NormParams<T>& p, const PacketFactors<V, PIXELS>& by, int64_t n,
                                               int64_t c, float (&d)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) d[i] *= by.scale[i];
  if (!p.post) return;
  const PacketFilm<V, PIXELS> film(p, n, c);
#pragma unroll
  for (int i = 0; i < V; ++i) d[i] *= film.scale[i];
}

}  // namespace film::cuda
