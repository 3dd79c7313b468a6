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

// Runs a kernel. What it throws where memory runs out has no words of its own.
template <class P, class Args>
void run(void (*kernel)(const P&, const Args&), const P& p, const Args& args) {
  try {
    kernel(p, args);
  } catch (const std::bad_alloc&) {
    STD_TORCH_CHECK(false, "film_kernels: not enough memory for a kernel's tables");
  } catch (const std::length_error&) {
    STD_TORCH_CHECK(false, "film_kernels: not enough memory for a kernel's tables");
  }
}

}  // namespace film
