// The kernels, and when they are the wrong choice, once for each instruction set that the library carries.
#pragma once

#include "../norm_problem.h"

namespace film {

// What a convolution is called for: with FiLM or an activation behind it, or alone, then perhaps with its weight packed
// before.
enum class Use { film, alone, alone_packed };

// What a choice between the kernels here and PyTorch's depends on beside the Problem. `small_sample` says that PyTorch
// has a way of its own for the input, without oneDNN: one sample of few elements, which it multiplies as matrices.
struct Asked {
  Use use;
  bool channels_last, small_sample;
};

struct Kernels {
  const char* name;
  void (*forward)(const Problem&, const ForwardArgs&);
  PackedWeight (*packing)(const Problem&, const View& weight);  // what `pack` makes, without its data
  void (*pack)(const Problem&, const PackArgs&);                // not called where that has no elements
  void (*grad_input)(const Problem&, const GradInputArgs&);
  void (*grad_weight)(const Problem&, const GradWeightArgs&);
  bool (*library_is_faster)(const Problem&, const Asked&);  // PyTorch's own, by measurements
  void (*norm_forward)(const NormProblem&, const NormForwardArgs&);
  void (*norm_backward)(const NormProblem&, const NormBackwardArgs&);
};

// Calls run(begin, end, context) over parts of [0, count), on PyTorch's threads.
void parallel_for(int64_t count, void (*run)(int64_t, int64_t, void*), void* context);
int64_t thread_count();

template <class F>
void parallel(int64_t count, const F& body) {
  parallel_for(
      count, [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); },
      const_cast<F*>(&body));
}

}  // namespace film
