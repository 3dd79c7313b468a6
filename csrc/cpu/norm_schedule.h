// Who works on what, when: the two stages of a normalisation, and the block of a tensor that is in the cache.
#pragma once

#include <algorithm>

#include "norm_rows.h"
#include "strip.h"

namespace film::FILM_ISA {

constexpr int64_t kBlock = 2048;           // elements that passes follow one another on
constexpr int64_t kElementsAlone = 16384;  // fewer are not worth waking another thread
// Elements of a group whose d is kept from one stage for the next, in the cache.
constexpr int64_t kElementsKept = 128 * 1024;
// Of a group beside whose x, gradient, d and dx the cache has room for the next group's input and gradient.
constexpr int64_t kElementsAhead = 64 * 1024;

inline bool takes_whole_regions(int64_t regions) {
  const int64_t threads = thread_count();
  return regions >= 4 * threads || regions % threads == 0;
}

// Calls body(begin, end) for all of [0, count).
template <class Body>
void share(int64_t count, int64_t elements, const Body& body) {
  elements < kElementsAlone ? body(0, count) : parallel(count, body);
}

// Regions of so many blocks, and the elements of all of them.
struct Shares {
  int64_t regions, blocks, elements;
};

// Both stages go over all blocks of all regions; between them comes what a region's second stage needs of its whole
// first. Where there are regions enough, a thread takes one after another through both stages, so that the second finds
// the region's data in the cache; else it is blocks that are shared out. Sums are of blocks, and then of these in
// order: so the bits of results do not depend on it. before and between take (region), first and second (region, block,
// worker).
template <class MakeWorker, class Before, class First, class Between, class Second>
void in_stages(const Shares& shares, const MakeWorker& make_worker, const Before& before, const First& first,
               const Between& between, const Second& second) {
  const int64_t regions = shares.regions, blocks = shares.blocks, elements = shares.elements;
  if (elements < kElementsAlone || takes_whole_regions(regions)) {
    share(regions, elements, [&](int64_t begin, int64_t end) {
      auto worker = make_worker();
      for (int64_t region = begin; region < end; ++region) {
        before(region);
        for (int64_t b = 0; b < blocks; ++b) first(region, b, worker);
        between(region);
        for (int64_t b = 0; b < blocks; ++b) second(region, b, worker);
      }
    });
    return;
  }
  const auto all = [&](const auto& stage) {
    share(regions * blocks, elements, [&](int64_t begin, int64_t end) {
      auto worker = make_worker();
      for (int64_t i = begin; i < end; ++i) stage(i / blocks, i % blocks, worker);
    });
  };
  const auto each = [&](const auto& step) {
    share(regions, elements, [&](int64_t begin, int64_t end) {
      for (int64_t region = begin; region < end; ++region) step(region);
    });
  };
  each(before), all(first), each(between), all(second);
}

// Rows in memory, of any storage type.
struct StoredRows {
  void* data;
  int64_t offset, pitch;
};

inline int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

inline Soon soon(const StoredRows& rows, DType dtype) {
  const int64_t size = size_of(dtype);
  return {static_cast<const char*>(rows.data) + rows.offset * size, rows.pitch * size, size};
}

// Them in the type of sums: as they are, or widened into `scratch`.
template <class A>
Rows<const A> widened(const StoredRows& from, DType dtype, int64_t rows, int64_t columns, A* scratch) {
  return with_storage<A>(dtype, [&](auto element) -> Rows<const A> {
    using T = decltype(element);
    const T* source = static_cast<const T*>(from.data) + from.offset;
    if constexpr (std::is_same_v<T, A>) return {source, from.pitch};
    if (from.pitch == columns)
      widen_copy(scratch, source, rows * columns);
    else
      for (int64_t r = 0; r < rows; ++r) widen_copy(scratch + r * columns, source + r * from.pitch, columns);
    return {scratch, columns};
  });
}

// Where results are to be written, before `narrow_rows`.
template <class A>
Rows<A> target(const StoredRows& to, DType dtype, int64_t columns, A* scratch) {
  return with_storage<A>(dtype, [&](auto element) -> Rows<A> {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, A>) return {static_cast<T*>(to.data) + to.offset, to.pitch};
    return {scratch, columns};
  });
}

template <class A>
void narrow_rows(const StoredRows& to, DType dtype, int64_t rows, int64_t columns, Rows<A> from) {
  with_storage<A>(dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (!std::is_same_v<T, A>) {
      T* out = static_cast<T*>(to.data) + to.offset;
      if (to.pitch == columns && from.pitch == columns) return narrow_copy(out, from.at, rows * columns);
      for (int64_t r = 0; r < rows; ++r) narrow_copy(out + r * to.pitch, from.row(r), columns);
    }
  });
}

}  // namespace film::FILM_ISA
