// Checks a launch as the card does, and runs its blocks, on several host threads where there is enough to do.
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "processor.h"

namespace film::emulator {

namespace {

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : std::strtoull(value, nullptr, 0);
}

std::atomic<uint64_t> seed{setting("FILM_EMULATOR_SEED", 0)};
std::atomic<int> host_threads{static_cast<int>(
    setting("FILM_EMULATOR_THREADS", std::min(8u, std::max(1u, std::thread::hardware_concurrency()))))};
std::atomic<size_t> shared_limit{227 * 1024};
std::atomic<int> launches{0}, errors{0};
thread_local cudaError_t last_error = cudaSuccess;

std::mutex message_mutex;
std::string last_message;

std::string demangled(const char* name) {
  int status;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

// The kernel's name where the program exports it, else the types that it takes.
std::string name_of(const Launch& launch) {
  Dl_info info;
  if (dladdr(launch.function, &info) != 0 && info.dli_saddr == launch.function) return demangled(info.dli_sname);
  return demangled(launch.type->name());
}

cudaError_t fail(cudaError_t error, const Launch& launch, const std::string& what) {
  const std::string message = "kernel " + name_of(launch) + " (seed " + std::to_string(seed) + "): " + what;
  std::fprintf(stderr, "film emulator: %s\n", message.c_str());
  const std::lock_guard lock(message_mutex);
  last_message = message;
  ++errors;
  return last_error = error;
}

std::string limits(const Launch& launch) {
  const dim3 g = launch.grid, b = launch.block;
  const auto count = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
    return "a grid of " + count(g) + " blocks";
  if (b.x == 0 || b.y == 0 || b.z == 0 || b.z > 64 || uint64_t{b.x} * b.y > 1024 || b.x * b.y * b.z > 1024)
    return "a block of " + count(b) + " threads";
  return "";
}

// Blocks are taken in turn by whoever is free, last to first where the seed is odd. What a block does depends on the
// seed and its index alone.
class Run {
 public:
  explicit Run(const Launch& launch)
      : launch_(launch), blocks_(uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z), seed_(seed) {}

  // Others are called in once the first has shown that it would take long.
  void blocks() {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    Processor& processor = Processor::of_this_thread();
    while (one(processor)) {
      if (others.empty() && host_threads > 1 && next_ < blocks_ &&
          std::chrono::steady_clock::now() - start > std::chrono::milliseconds(2))
        for (int i = 1; i < host_threads; ++i) others.emplace_back([this] { help(); });
    }
    processor.counts().publish();
    for (std::thread& other : others) other.join();
  }

  const std::string& message() const { return message_; }

 private:
  void help() {
    Processor& processor = Processor::of_this_thread();
    while (one(processor)) {
    }
    processor.counts().publish();
  }

  bool one(Processor& processor) {
    const uint64_t nth = next_++;
    if (nth >= blocks_ || failed_) return false;
    const uint64_t block = seed_ % 2 == 0 ? nth : blocks_ - 1 - nth;
    const dim3 g = launch_.grid;
    const uint3 index{static_cast<unsigned>(block % g.x), static_cast<unsigned>(block / g.x % g.y),
                      static_cast<unsigned>(block / (uint64_t{g.x} * g.y))};
    if (processor.run(launch_, index, Random(seed_).next() + block)) return true;
    if (!failed_.exchange(true)) message_ = processor.message();
    return false;
  }

  const Launch& launch_;
  const uint64_t blocks_, seed_;
  std::atomic<uint64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::string message_;
};

}  // namespace

int launch(const Launch& launch) {
  ++launches;
  if (const std::string wrong = limits(launch); !wrong.empty())
    return fail(cudaErrorInvalidConfiguration, launch, wrong);
  if (launch.shared_bytes > shared_limit)
    return fail(cudaErrorInvalidValue, launch,
                std::to_string(launch.shared_bytes) + " bytes of shared memory, of " + std::to_string(shared_limit));
  Run run(launch);
  run.blocks();
  if (!run.message().empty()) return fail(cudaErrorLaunchFailure, launch, run.message());
  return cudaSuccess;
}

}  // namespace film::emulator

cudaError_t cudaGetLastError() { return std::exchange(film::emulator::last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return film::emulator::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : static_cast<int>(film::emulator::shared_limit);
  return cudaSuccess;
}

void film_emulator_set_seed(uint64_t seed) { film::emulator::seed = seed; }
void film_emulator_set_threads(int count) { film::emulator::host_threads = count; }
void film_emulator_set_shared_limit(size_t bytes) { film::emulator::shared_limit = bytes; }
int film_emulator_launches() { return film::emulator::launches; }
int film_emulator_errors() { return film::emulator::errors; }

const char* film_emulator_message() {
  static thread_local std::string message;
  const std::lock_guard lock(film::emulator::message_mutex);
  message = film::emulator::last_message;
  return message.c_str();
}
