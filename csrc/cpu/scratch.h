// Memory of one thread, for the length of a kernel.
//
// It is kept for the thread's next call: an allocator gives blocks of this size back to the operating system, which
// then clears every page anew, and that can take longer than the kernel.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "simd.h"

namespace film::FILM_ISA {

class ScratchPool {
 public:
  struct Block {
    void* data;
    size_t bytes;
  };

  // The smallest block that is large enough, but not one of more than twice the size.
  static Block take(size_t bytes) {
    std::vector<Block>& kept = of_this_thread().kept_;
    auto best = kept.end();
    for (auto it = kept.begin(); it != kept.end(); ++it)
      if (it->bytes >= bytes && it->bytes <= 2 * bytes && (best == kept.end() || it->bytes < best->bytes)) best = it;
    if (best != kept.end()) {
      const Block block = *best;
      kept.erase(best);
      return block;
    }
    void* data = std::aligned_alloc(64, bytes);
    if (data == nullptr)
      throw std::runtime_error("film_kernels: not enough memory: a kernel could not allocate " + std::to_string(bytes) +
                               " bytes to work in");
    return {data, bytes};
  }

  // The oldest blocks make room for this one.
  static void give_back(Block block) {
#if defined(__SANITIZE_ADDRESS__)  // which sees a step past the end of a block that is just as large as it should be
    std::free(block.data);
#else
    constexpr size_t kMost = 64 << 20;  // bytes kept by a thread
    std::vector<Block>& kept = of_this_thread().kept_;
    size_t total = block.bytes;
    for (const Block& other : kept) total += other.bytes;
    while (total > kMost && !kept.empty()) {
      total -= kept.front().bytes;
      std::free(kept.front().data);
      kept.erase(kept.begin());
    }
    if (total > kMost) return std::free(block.data);
    kept.push_back(block);
#endif
  }

 private:
  ~ScratchPool() {
    for (const Block& block : kept_) std::free(block.data);
  }
  static ScratchPool& of_this_thread() {
    thread_local ScratchPool pool;
    return pool;
  }
  std::vector<Block> kept_;
};

template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : block_(ScratchPool::take((count * sizeof(A) + 2 * kVectorBytes + 63) / 64 * 64)),
        data_(static_cast<A*>(block_.data)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ScratchPool::give_back(block_); }
  operator A*() const { return data_; }
  void zero(int64_t count) { std::memset(data_, 0, count * sizeof(A)); }

 private:
  ScratchPool::Block block_;
  A* data_;
};

}  // namespace film::FILM_ISA
