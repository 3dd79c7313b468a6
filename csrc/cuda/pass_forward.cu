// y from the convolution's result, in one reading; y may take its place.
#include "pass_walk.cuh"

namespace film::cuda {
namespace {

// scale, shift and bias of one channel, applied.
template <class Act>
__device__ __forceinline__ float film_of(const Act& act, bool post, float raw, float bias, float scale, float shift) {
  const float z = raw + bias;
  return post ? scale * act.value(z) + shift : act.value(scale * z + shift);
}

template <class T, int V>
__global__ void __launch_bounds__(kPassThreads, 1) forward_planes_kernel(const PassParams<T> p) {
  const PlanePiece piece(p);
  if (piece.plane >= p.n * p.k) return;
  const int64_t n = piece.plane / p.k;
  const int k = static_cast<int>(piece.plane - n * p.k);
  const float bias = p.bias.at(0, k), scale = p.scale(n, k), shift = p.beta.at(n, k);
  if (piece.split == 0 && threadIdx.x % 32 == 0) p.copy(n, k, bias, shift);
  with_activation<MathOf<T>>(p.activation, p.lower_slope, [&](auto act) {
    piece.each<V>([&](auto count, int64_t i) {
      float values[decltype(count)::value];
      load(p.raw + i, values);
#pragma unroll
      for (float& value : values) value = film_of(act, p.post, value, bias, scale, shift);
      store(p.out + i, values);
    });
  });
}

template <class T, int V>
__global__ void __launch_bounds__(kPassThreads, 1) forward_rows_kernel(const PassParams<T> p) {
  const RowPiece<V> piece(p);
  if (piece.k >= p.k) return;
  float bias[V], scale[V], shift[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    bias[i] = p.bias.at(0, piece.k + i);
    scale[i] = p.scale(piece.n, piece.k + i);
    shift[i] = p.beta.at(piece.n, piece.k + i);
    if (piece.split == 0 && piece.row == 0) p.copy(piece.n, piece.k + i, bias[i], shift[i]);
  }
  const int64_t sample = piece.n * p.positions * p.k + piece.k;
  with_activation<MathOf<T>>(p.activation, p.lower_slope, [&](auto act) {
    for (int64_t q = piece.begin + piece.row; q < piece.end; q += piece.rows) {
      float values[V];
      load(p.raw + sample + q * p.k, values);
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = film_of(act, p.post, values[i], bias[i], scale[i], shift[i]);
      store(p.out + sample + q * p.k, values);
    }
  });
}

template <class T, int V>
struct Forward {
  static constexpr size_t kSharedBytes = 0;
  static auto planes() { return forward_planes_kernel<T, V>; }
  static auto rows() { return forward_rows_kernel<T, V>; }
};

}  // namespace

cudaError_t pass_forward(const Pass& p, const PassCut& cut, const void* raw, void* out, const PassCopies& copies,
                         cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    return start_pass<Forward, T>(p, pass_params<T>(p, cut, nullptr, raw, out, {}, copies), stream);
  });
}

}  // namespace film::cuda
