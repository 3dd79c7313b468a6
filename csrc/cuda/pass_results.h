// What backward returns of the convolution's result, and the partial sums that it is added up from.
#pragma once

#include <tuple>

#include "../tensors.h"
#include "device.h"
#include "pass_kernels.h"

namespace film {

// An empty tensor stands for a gradient that is not wanted.
class PassResults {
 public:
  struct Wanted {
    bool raw, bias, gamma, beta;
  };

  PassResults(const cuda::Pass& p, const Shape& raw, const Wanted& wanted, const Argument& like)
      : pass_(p),
        wanted_(wanted),
        like_(like),
        dz_(allocate(wanted.raw ? raw : Shape{0}, p.rows && wanted.raw, like.dtype, like)),
        bias_(allocate(wanted.bias ? Shape{p.channels} : Shape{0}, false, like.dtype, like)),
        gamma_(allocate(wanted.gamma ? Shape{p.batch, p.channels} : Shape{0}, false, like.dtype, like)),
        beta_(allocate(wanted.beta ? Shape{p.batch, p.channels} : Shape{0}, false, like.dtype, like)) {}

  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {dz_, bias_, gamma_, beta_}; }

  // Where there are no positions to sum over.
  void zero() const {
    for (const Tensor* each : {&dz_, &bias_, &gamma_, &beta_}) fill_with_zeros(*each);
  }

  // start(dz, sums) starts the kernel that writes dz and the partial sums, null where not wanted.
  template <class Start>
  void fill(const cuda::PassCut& cut, cudaStream_t stream, const char* name, const Start& start) const {
    const auto partial = [&](bool wanted) {
      return allocate(wanted ? Shape{pass_.batch, cut.splits, pass_.channels} : Shape{0}, false,
                      aoti_torch_dtype_float32(), like_);
    };
    const auto data = [](const Tensor& made) { return made.numel() > 0 ? made.data_ptr() : nullptr; };
    const Tensor product = partial(wanted_.gamma), u = partial(wanted_.bias || (wanted_.beta && !pass_.post)),
                 g = partial(wanted_.beta && pass_.post);
    const auto sum = [&](const Tensor& made) { return static_cast<float*>(data(made)); };
    const cuda::PassSums sums{sum(product), sum(u), sum(g)};
    check(start(data(dz_), sums), name);
    if (wanted_.bias || wanted_.gamma || wanted_.beta)
      check(cuda::pass_finish(pass_, cut, sums, {data(bias_), data(gamma_), data(beta_)}, stream), "pass_finish");
  }

 private:
  const cuda::Pass& pass_;
  Wanted wanted_;
  const Argument& like_;
  Tensor dz_, bias_, gamma_, beta_;
};

}  // namespace film
