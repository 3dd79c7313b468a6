// dz and the partial sums, in one reading of the gradient and of the convolution's result.
#include <ptx.cuh>

#include "film_gradient.cuh"
#include "pass_walk.cuh"

namespace film::cuda {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kPassThreads, 1) backward_planes_kernel(const PassParams<T> p) {
  const PlanePiece piece(p);
  if (piece.plane >= p.n * p.k) return;
  const int64_t n = piece.plane / p.k;
  const int k = static_cast<int>(piece.plane - n * p.k);
  const float bias = p.bias.at(0, k), scale = p.scale(n, k), shift = p.beta.at(n, k);
  Sums sums;
  with_activation<MathOf<T>>(p.activation, p.lower_slope, [&](auto act) {
    piece.each<V>([&](auto count, int64_t at) {
      constexpr int kCount = decltype(count)::value;
      float g[kCount], raw[kCount];
      load(p.grad + at, g);
      load(p.raw + at, raw);
#pragma unroll
      for (int i = 0; i < kCount; ++i) g[i] = gradient_of(act, p.post, g[i], raw[i], bias, scale, shift, sums);
      if (p.out != nullptr) store(p.out + at, g);
    });
  });
  const int64_t to = (n * p.cut.splits + piece.split) * p.k + k;
  const auto add = [&](float* sum, float value) {
    if (sum == nullptr) return;
#pragma unroll
    for (int half = 16; half > 0; half /= 2) value += __shfl_xor_sync(0xffffffffu, value, half);
    if (threadIdx.x % 32 == 0) sum[to] = value;
  };
  add(p.sums.product, sums.product);
  add(p.sums.u, sums.u);
  add(p.sums.g, sums.g);
}

template <class T, int V>
__global__ void __launch_bounds__(kPassThreads, 1) backward_rows_kernel(const PassParams<T> p) {
  const RowPiece<V> piece(p);
  Sums sums[V];
  if (piece.k < p.k) {
    float bias[V], scale[V], shift[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      bias[i] = p.bias.at(0, piece.k + i);
      scale[i] = p.scale(piece.n, piece.k + i);
      shift[i] = p.beta.at(piece.n, piece.k + i);
    }
    const int64_t sample = piece.n * p.positions * p.k + piece.k;
    with_activation<MathOf<T>>(p.activation, p.lower_slope, [&](auto act) {
      for (int64_t q = piece.begin + piece.row; q < piece.end; q += piece.rows) {
        float g[V], raw[V];
        load(p.grad + sample + q * p.k, g);
        load(p.raw + sample + q * p.k, raw);
#pragma unroll
        for (int i = 0; i < V; ++i) g[i] = gradient_of(act, p.post, g[i], raw[i], bias[i], scale[i], shift[i], sums[i]);
        if (p.out != nullptr) store(p.out + sample + q * p.k, g);
      }
    });
  }
  // A thread for each channel adds what the rows have, in order.
  float* shared = ptx::shared_memory<float>();
  const int columns = p.lanes * V, column = threadIdx.x;
  const int k = piece.k - piece.lane * V + column % p.lanes * V + column / p.lanes;
  const auto add = [&](float* sum, float Sums::* kind) {
    if (sum == nullptr) return;
    __syncthreads();  // what was there before has been read
#pragma unroll
    for (int i = 0; i < V; ++i) shared[piece.row * columns + i * p.lanes + piece.lane] = sums[i].*kind;
    __syncthreads();
    if (column >= columns || k >= p.k) return;
    double total = 0;  // of up to 256 rows, one after another
    for (int row = 0; row < piece.rows; ++row) total += shared[row * columns + column];
    sum[(piece.n * p.cut.splits + piece.split) * p.k + k] = static_cast<float>(total);
  };
  add(p.sums.product, &Sums::product);
  add(p.sums.u, &Sums::u);
  add(p.sums.g, &Sums::g);
}

template <class T, int V>
struct Backward {
  static constexpr size_t kSharedBytes = kPassThreads * V * sizeof(float);
  static auto planes() { return backward_planes_kernel<T, V>; }
  static auto rows() { return backward_rows_kernel<T, V>; }
};

}  // namespace

cudaError_t pass_backward(const Pass& p, const PassCut& cut, const void* grad, const void* raw, void* dz,
                          const PassSums& sums, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    return start_pass<Backward, T>(p, pass_params<T>(p, cut, grad, raw, dz, sums, {}), stream);
  });
}

}  // namespace film::cuda
