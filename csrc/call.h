// Calls of PyTorch's C interface, which answers with a code: where one fails, PyTorch's own words come out.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

// What the exception said that made the last call fail. A PyTorch before 2.13 does not tell: there this is null.
extern "C" __attribute__((weak, visibility("default"))) const char* torch_exception_get_what_without_backtrace();

namespace film {

// `doing` completes "PyTorch could not ...".
inline void call(AOTITorchError code, const char* doing) {
  if (code == AOTI_TORCH_SUCCESS) return;
  std::string words = std::string("film_kernels: PyTorch could not ") + doing;
  if (torch_exception_get_what_without_backtrace != nullptr)
    words += std::string(": ") + torch_exception_get_what_without_backtrace();
  throw std::runtime_error(words);
}

}  // namespace film
