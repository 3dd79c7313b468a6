// csrc/cuda/activate.cuh on the emulator: act(v) and g * act'(v) of the activation of a code, for each of many numbers.
#include <activate.cuh>
#include <launch.cuh>

namespace {

struct Params {
  const float *g, *v;
  float *value, *gradient;
  int64_t count;
  int activation;
  float slope;
};

__global__ void activate_kernel(const Params p) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= p.count) return;
  p.value[i] = film::cuda::activate(p.v[i], p.activation, p.slope);
  p.gradient[i] = film::cuda::activation_gradient(p.g[i], p.v[i], p.activation, p.slope);
}

int run(const Params& params) {
  const dim3 blocks(static_cast<unsigned>((params.count + 255) / 256));
  return film::cuda::launch(activate_kernel, blocks, dim3(256), 0, nullptr, params);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
int film_activations(const float* g, const float* v, float* value, float* gradient, int64_t count, int activation,
                     double slope) {
  return run({g, v, value, gradient, count, activation, static_cast<float>(slope)});
}
}
#pragma GCC visibility pop
