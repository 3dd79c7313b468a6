// The kernels of the instruction set that is used, for the operators of the CPU library.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <new>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace film {

// Asked for at a call, not when the library is loaded, so that a wrong setting is an error that can be caught.
const Kernels& kernels();

// All that were built: "avx512, avx2, baseline".
std::string built_sets();

// While there is one, and it is asked for, parallel_for keeps to the thread that calls it.
class OneThread {
 public:
  explicit OneThread(bool asked);
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  bool before_;
};

// Whether a convolution is so little work that a second thread would save nothing: about 15 us of one. Where other
// processes keep the cores busy, waiting for that thread takes milliseconds.
inline bool is_little_work(const Problem& p) {
  constexpr double kProducts = 1 << 20, kProductsOfElement = 16;
  const double outputs = static_cast<double>(p.positions()) * p.out_channels;
  const double inputs = static_cast<double>(p.batch) * p.in_channels * p.h.in * p.w.in;
  const double products = outputs * p.group_in() * p.h.kernel * p.w.kernel;
  return products + kProductsOfElement * (inputs + outputs) <= kProducts;
}
// Norms see to it themselves (norm_schedule.h).
inline bool is_little_work(const NormProblem&) { return false; }

// Runs a kernel. What it throws where memory runs out has no words of its own.
template <class P, class Args>
void run(void (*kernel)(const P&, const Args&), const P& p, const Args& args) {
  const OneThread here(is_little_work(p));
  try {
    kernel(p, args);
  } catch (const std::bad_alloc&) {
    STD_TORCH_CHECK(false, "film_kernels: not enough memory for a kernel's tables");
  } catch (const std::length_error&) {
    STD_TORCH_CHECK(false, "film_kernels: not enough memory for a kernel's tables");
  }
}

}  // namespace film
