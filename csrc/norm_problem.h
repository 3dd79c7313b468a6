// The NormProblem in C++: sizes, layouts and options of one normalisation + FiLM + activation.
#pragma once

#include <cstdint>

#include "problem.h"

namespace film {

// What is normalised together; for `none` the input stays as it is.
enum class Norm { group, batch, channel, rms, l2, none };

struct NormProblem {
  int64_t batch;      // N
  int64_t channels;   // C
  int64_t positions;  // the product of the other sizes
  Norm norm;
  int64_t groups;  // of the channels of a sample, for Norm::group
  DType dtype, parameter_dtype;
  Activation activation;
  Position position;
  double lower_slope;  // what the activation multiplies by on its lower branch
  double gamma_offset;
  double eps;

  bool is_of_positions() const { return norm == Norm::channel || norm == Norm::rms || norm == Norm::l2; }
  bool takes_mean() const { return norm == Norm::group || norm == Norm::batch || norm == Norm::channel; }
  int64_t elements() const { return batch * channels * positions; }

  // The groups of elements that have statistics in common.
  int64_t statistics() const {
    if (norm == Norm::group) return batch * groups;
    if (norm == Norm::batch) return channels;
    return norm == Norm::none ? 0 : batch * positions;
  }
  // How many elements have statistics in common.
  int64_t group_size() const {
    if (norm == Norm::group) return channels / groups * positions;
    return norm == Norm::batch ? batch * positions : channels;
  }
  // Whether each element is its own mean: then dx is 0, exactly.
  bool is_constant() const { return takes_mean() && group_size() == 1; }
  // Two rows, means and variances; or the latter alone. (rms: mean squares, l2: lengths.)
  int64_t statistics_rows() const { return norm == Norm::none ? 0 : takes_mean() ? 2 : 1; }
};

// A tensor (N, C, positions) by its strides in elements. One of the latter two is 1.
struct Cube {
  void* data = nullptr;
  int64_t n = 0, c = 0, p = 0;
};

// The factors: weight and bias (C), gamma and beta (N, C).
struct NormFactors {
  Matrix weight, bias, gamma, beta;
};

// Input and output are of the same memory format, and so are all others of their shape.
struct NormForwardArgs {
  Cube input, output;
  NormFactors by;
  void* statistics;  // (rows, groups), in the type of sums
};

struct NormBackwardArgs {
  Cube grad, input, grad_input;  // grad_input.data is null where it is not wanted
  NormFactors by;
  const void* statistics;
  void *grad_weight, *grad_bias, *grad_gamma, *grad_beta;  // contiguous, or null where not wanted

  bool sums_wanted() const {
    return grad_weight != nullptr || grad_bias != nullptr || grad_gamma != nullptr || grad_beta != nullptr;
  }
};

}  // namespace film
