// A second way to convolve, for few channels of a group: lanes are neighbouring columns of one output channel instead
// of channels of one position, so that 3 input channels, 10 output channels or depthwise groups leave no lane idle and
// no patch has to be gathered. planes_choice.h says when; convolve_planes.h is the convolution.
//
// A block of destination rows of one sample reads planes: for each source channel, the rows that it needs with zeros
// where the convolution pads, in the accumulator's type. With a step between destination columns (a stride), each
// plane row is stored as `step` phases, so that the columns that one tap reads lie side by side:
//
//   columns of the source      0 1 2 3 4 5 6 7
//   a row of a plane, step 2   0 2 4 6 . . | 1 3 5 7 . .        two phases, `pitch` = 6 apart
#pragma once

#include <algorithm>
#include <vector>

#include "ranges.h"
#include "strip.h"
#include "taps.h"

namespace film::FILM_ISA {

// Where the elements of a block's planes stand.
struct PlaneShape {
  int64_t rows, phases, pitch;  // of one channel; a row is phases * pitch elements
  int64_t row() const { return phases * pitch; }
  int64_t plane() const { return rows * row(); }
};

// Room for `rows` destination rows of all columns, and for `vectors` of them that begin at any column.
template <class A>
PlaneShape plane_shape(const Taps& h, const Taps& w, int64_t rows, int vectors) {
  const int64_t columns = (w.extent(w.count) + w.step - 1) / w.step;
  return {h.extent(rows), w.step, columns + vectors * kLanes<A>};
}

// For each product (source channel, kernel row, kernel column), its place in the planes.
inline std::vector<int64_t> plane_offsets(const Taps& h, const Taps& w, int64_t channels, const PlaneShape& shape) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap_h : h.offset)
      for (int64_t tap_w : w.offset) {
        const int64_t row = tap_h - h.low(), column = tap_w - w.low();
        offsets.push_back(c * shape.plane() + row * shape.row() + column % w.step * shape.pitch + column / w.step);
      }
  return offsets;
}

// Loads the columns of a run, channel after channel, `pitch` elements apart.
template <class A, class T>
void load_planes(A* dst, int64_t pitch, const View& view, const ColumnRun& run, const ChannelRange& channels) {
  const T* src =
      static_cast<const T*>(view.data) + run.n * view.n + run.h * view.h + run.first * view.w + channels.first * view.c;
  if (view.w == 1) {
    for (int64_t c = 0; c < channels.count; ++c) widen_copy(dst + c * pitch, src + c * view.c, run.count);
  } else if (view.c == 1) {
    turn<A>(dst, pitch, src, view.w, run.count, channels.count);
  } else {
    for (int64_t w = 0; w < run.count; ++w)
      for (int64_t c = 0; c < channels.count; ++c) dst[c * pitch + w] = widen<A>(src[w * view.w + c * view.c]);
  }
}

template <class A>
using LoadPlanes = void (*)(A*, int64_t, const View&, const ColumnRun&, const ChannelRange&);

template <class A>
LoadPlanes<A> plane_loader(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> LoadPlanes<A> { return load_planes<A, decltype(element)>; });
}

// A source of planes: the input's own.
template <class A>
struct PlainPlanes {
  View view;
  LoadPlanes<A> load;
  int64_t channels;

  void operator()(A* dst, int64_t pitch, const ColumnRun& run) { load(dst, pitch, view, run, {0, channels}); }
};

// The planes of one block of rows after another.
template <class A>
class Planes {
 public:
  // With room for all the columns that `w` reads.
  Planes(const PlaneShape& shape, int64_t channels, const Taps& w)
      : shape_(shape), channels_(channels), planes_(channels * shape.plane()), line_(channels * w.extent(w.count)) {}

  const PlaneShape& shape() const { return shape_; }
  int64_t channels() const { return channels_; }
  A* of_channel(int64_t c) const { return planes_ + c * shape_.plane(); }

  // Fills what the destination rows `rows` read, at the columns that `w` reads. source(dst, pitch, run) writes the
  // columns of a run of a source row, channel after channel, `pitch` elements apart.
  template <class Source>
  void fill(const RowRange& rows, const Taps& h, const Taps& w, Source& source) const {
    const Inside columns(w, 0, w.extent(w.count));
    for (int64_t r = 0; r < h.extent(rows.count); ++r) {
      A* row = planes_ + r * shape_.row();
      const ColumnRun run{rows.n, rows.first * h.step + h.low() + r, w.low() + columns.begin, columns.count()};
      if (run.h < 0 || run.h >= h.source || run.count == 0)
        clear(row);
      else if (shape_.phases == 1)
        fill_row(row, columns, run, source);
      else
        fill_phases(row, columns, run, source);
    }
  }

 private:
  // A row of all channels.
  void clear(A* row) const {
    for (int64_t c = 0; c < channels_; ++c) std::memset(row + c * shape_.plane(), 0, shape_.row() * sizeof(A));
  }

  template <class Source>
  void fill_row(A* row, const Inside& columns, const ColumnRun& run, Source& source) const {
    for (int64_t c = 0; c < channels_; ++c) {
      A* of_channel = row + c * shape_.plane();
      std::memset(of_channel, 0, columns.begin * sizeof(A));
      std::memset(of_channel + columns.end, 0, (shape_.pitch - columns.end) * sizeof(A));
    }
    source(row + columns.begin, shape_.plane(), run);
  }

  // By way of a line of memory, from which the columns are dealt out to the phases.
  template <class Source>
  void fill_phases(A* row, const Inside& columns, const ColumnRun& run, Source& source) const {
    const int64_t phases = shape_.phases;
    source(line_, run.count, run);
    clear(row);
    for (int64_t c = 0; c < channels_; ++c) {
      const A* src = line_ + c * run.count - columns.begin;
      for (int64_t phase = 0; phase < phases; ++phase) {
        A* dst = row + c * shape_.plane() + phase * shape_.pitch;
        const int64_t first = (columns.begin - phase + phases - 1) / phases;
        for (int64_t i = std::max<int64_t>(first, 0); i * phases + phase < columns.end; ++i)
          dst[i] = src[i * phases + phase];
      }
    }
  }

  const PlaneShape shape_;
  const int64_t channels_;
  Scratch<A> planes_, line_;
};

}  // namespace film::FILM_ISA
