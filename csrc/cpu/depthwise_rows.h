// Rows of a sample as the register tiles of a depthwise convolution read them, and the walk over the destination that
// forward and grad_input share.
//
// The channels of a position lie side by side. Where they do so in the source, in the type that is worked on, rows are
// read where they are; else a row is loaded, once, into one of as many places as a destination row reads.
#pragma once

#include "depthwise_tile.h"
#include "kernels.h"

namespace film::FILM_ISA {

// Columns [first, first + count).
struct ColumnRange {
  int64_t first, count;
};

// So many rows are loaded, and stored, together that they have as many columns as this, if they lie one behind another:
// channels that lie apart are turned in blocks of columns, which short rows do not fill.
constexpr int64_t kColumnsTogether = 112;

// How many of them: one, where tasks have parts of rows.
inline int64_t rows_together(const View& view, int64_t rows, int64_t columns, bool whole_rows) {
  if (!whole_rows || rows * columns == 0 || view.h != columns * view.w) return 1;
  return std::clamp<int64_t>(kColumnsTogether / columns, 1, rows);
}

// The source itself: read where it lies, if that can be.
template <class A>
struct PlainPixels {
  View view;
  LoadRow<A> load;
  bool in_place;

  PlainPixels(const View& source, DType dtype, int64_t channels)
      : view(source),
        load(row_loader<A>(dtype)),
        in_place(view.c == 1 && channels >= kLanes<A> && (dtype == DType::f32 || dtype == DType::f64)) {}

  void operator()(A* dst, const ColumnRun& run, const ChannelRange& channels) const {
    load(dst, channels.count, view, run, channels);
  }
  const A* row(int64_t n, int64_t h) const { return static_cast<const A*>(view.data) + n * view.n + h * view.h; }
};

template <class A>
const View& tensor_of(const PlainPixels<A>& source) {
  return source.view;
}

// Sizes of what PixelRows holds: `rows` and `columns` of the source, and at most so many of them at hand.
struct RowSizes {
  int64_t rows, columns;
  int64_t rows_at_hand, columns_at_hand, channels_at_hand;
  bool whole_rows() const { return columns == columns_at_hand; }
};

// The rows of one task after another. `Source` is PlainPixels, or what else loads the channels of a run side by side.
template <class A, class Source>
class PixelRows {
 public:
  PixelRows(const Source& source, const RowSizes& sizes)
      : source_(source),
        rows_(sizes.rows),
        together_(rows_together(tensor_of(source), sizes.rows, sizes.columns, sizes.whole_rows())),
        place_(together_ * sizes.columns_at_hand * sizes.channels_at_hand),
        held_((sizes.rows_at_hand + together_ - 2) / together_ + 1, -1),
        pixels_(in_place() ? 0 : static_cast<int64_t>(held_.size()) * place_) {}

  // From one column to the next.
  int64_t pitch() const {
    if constexpr (std::is_same_v<Source, PlainPixels<A>>)
      if (source_.in_place) return source_.view.w;
    return channels_.count;
  }

  // From here on rows are those of sample n, of these columns (all, where rows are whole) and channels.
  void begin(int64_t n, const ColumnRange& columns, const ChannelRange& channels) {
    n_ = n, columns_ = columns, channels_ = channels;
    std::fill(held_.begin(), held_.end(), -1);
  }

  // Channel 0 of column 0 of row h.
  const A* row(int64_t h) {
    if constexpr (std::is_same_v<Source, PlainPixels<A>>)
      if (source_.in_place) return source_.row(n_, h);
    const int64_t number = h / together_, first = number * together_, size = columns_.count * channels_.count;
    const int64_t place = number % static_cast<int64_t>(held_.size());
    A* at = pixels_ + place * place_;
    if (held_[place] != number) {
      const int64_t rows = std::min(together_, rows_ - first);
      source_(at, {n_, first, columns_.first, rows * columns_.count}, channels_);
      held_[place] = number;
    }
    return at + (h - first) * size - columns_.first * channels_.count - channels_.first;
  }

 private:
  bool in_place() const {
    if constexpr (std::is_same_v<Source, PlainPixels<A>>) return source_.in_place;
    return false;
  }

  const Source& source_;
  const int64_t rows_, together_, place_;
  int64_t n_ = 0;
  ColumnRange columns_{};
  ChannelRange channels_{};
  std::vector<int64_t> held_;  // which rows are in each place: the number of the first, in rows that go together
  Scratch<A> pixels_;
};

// The columns of a source that columns [from, to) of it, some of them in the padding, are: all where all are at hand.
inline ColumnRange columns_at_hand(int64_t columns, int64_t at_hand, int64_t from, int64_t to) {
  if (at_hand == columns) return {0, columns};
  const int64_t first = std::clamp<int64_t>(from, 0, columns);
  return {first, std::clamp<int64_t>(to, first, columns) - first};
}

// How the destination is cut: a task is some rows of one sample, and of rows that are long some of their columns. Both
// are counted as a pass does.
struct DepthwisePlan {
  int64_t rows, columns;  // of a task, at most
  int64_t along_h, along_w;
};

template <class A>
DepthwisePlan plan_depthwise(int64_t batch, int64_t channels, int64_t rows, int64_t columns, int64_t kernel_rows) {
  constexpr int64_t kRowBytes = 64 << 10;                // of a task's row: those that a row reads stay in L2
  constexpr int64_t kLeastColumns = 64, kLeastRows = 2;  // so that few are loaded twice; rows for each of the kernel's
  constexpr int64_t kTasksOfThread = 4;                  // at least, where that leaves each so much
  const auto parts = [](int64_t total, int64_t size) { return (total + size - 1) / size; };
  const int64_t wanted = kTasksOfThread * thread_count();
  const int64_t fit = kRowBytes / static_cast<int64_t>(sizeof(A)) / channels;
  DepthwisePlan plan;
  plan.rows = std::clamp<int64_t>(batch * rows / wanted, std::min(rows, kLeastRows * kernel_rows), rows);
  const int64_t of_all = batch * parts(rows, plan.rows);
  const int64_t share = of_all >= wanted ? columns : columns * of_all / wanted;
  plan.columns = std::min(columns, round_up(std::max(std::min(fit, share), kLeastColumns), kDepthwiseColumns));
  plan.along_h = parts(rows, plan.rows), plan.along_w = parts(columns, plan.columns);
  return plan;
}

// Goes over the destination row by row:
//   sink.begin(n, h, columns), sum_depthwise_row with sink.epilogue(first, spacing) of each pass, sink.end()
// and at the end of a task, whose rows follow one another, sink.finish(). The passes stand together by the rows that
// they write, `along_row` of them for each. Source and sink are copied for every thread, and sink.make_room(columns) is
// called first, with the most of a row.
template <class A, class Source, class Sink>
void convolve_depthwise(const std::vector<DepthwisePass<A>>& passes, size_t along_row, int64_t batch, int64_t channels,
                        const Source& shared_source, const Sink& shared_sink) {
  const Taps& first = passes.front().w;
  const int64_t rows = passes.front().h.count, columns = first.count, spacing = first.spacing, step = first.step;
  int64_t low = 0, high = 0, low_w = 0, high_w = 0, last_column = 0;  // of all passes' taps
  for (const DepthwisePass<A>& pass : passes) {
    if (pass.h.offset.empty() || pass.w.offset.empty()) continue;
    low = std::min(low, pass.h.offset.front()), high = std::max(high, pass.h.offset.back());
    low_w = std::min(low_w, pass.w.offset.front()), high_w = std::max(high_w, pass.w.offset.back());
  }
  for (const DepthwisePass<A>& pass : passes)
    last_column = std::max(last_column, pass.w.first + (pass.w.count - 1) * spacing);
  const DepthwisePlan plan = plan_depthwise<A>(batch, channels, rows, columns, high - low + 1);
  const int64_t extent = (plan.columns - 1) * step + high_w - low_w + 1;
  parallel(batch * plan.along_h * plan.along_w, [&](int64_t begin, int64_t end) {
    Source source = shared_source;
    Sink sink = shared_sink;
    sink.make_room(std::min(plan.columns * spacing, last_column + 1));
    const int64_t at_hand = plan.along_w == 1 ? first.source : std::min(extent, first.source);
    PixelRows<A, Source> x(source, {passes.front().h.source, first.source, high - low + 1, at_hand, channels});
    std::vector<const A*> kernel_rows(kMostDepthwiseTaps);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t w0 = task % plan.along_w * plan.columns, w1 = std::min(w0 + plan.columns, columns);
      const int64_t block = task / plan.along_w, n = block / plan.along_h;
      const int64_t h0 = block % plan.along_h * plan.rows, h1 = std::min(h0 + plan.rows, rows);
      x.begin(n, columns_at_hand(first.source, at_hand, w0 * step + low_w, (w1 - 1) * step + high_w + 1),
              {0, channels});
      const int64_t to = w0 * spacing;
      const ColumnRange destination{to, std::min(w1 * spacing, last_column + 1) - to};
      for (int64_t i = h0; i < h1; ++i)
        for (size_t p = 0; p < passes.size(); p += along_row) {
          const Taps& h = passes[p].h;
          if (i >= h.count) continue;
          for (size_t t = 0; t < h.offset.size(); ++t) {
            const int64_t row = i * h.step + h.offset[t];
            kernel_rows[t] = row < 0 || row >= h.source ? nullptr : x.row(row);
          }
          sink.begin(n, h.first + i * h.spacing, destination);
          for (size_t q = p; q < p + along_row; ++q) {
            const Taps& w = passes[q].w;
            const int64_t taps = w.offset.size(), last = std::min(w1, w.count);
            if (last <= w0) continue;
            const DepthwiseRow<A> row{kernel_rows.data(),
                                      taps == 0 ? 0 : static_cast<int64_t>(h.offset.size()),
                                      x.pitch(),
                                      w.source,
                                      w.low(),
                                      passes[q].filters.data(),
                                      channels,
                                      w0,
                                      last - w0};
            sum_depthwise_row<A>(std::max<int64_t>(taps, 1), step, row, sink.epilogue(w.first, spacing));
          }
          sink.end();
        }
      sink.finish();
    }
  });
}

// Rows of the destination, one after another: where they lie, if their channels lie side by side there in the type that
// is worked on, or in memory of the thread, from which some are stored together.
template <class A>
class ResultRows {
 public:
  ResultRows(const View& view, DType dtype, int64_t rows, int64_t columns, int64_t channels, bool straight)
      : view_(view),
        straight_(straight && view.c == 1 && (dtype == DType::f32 || dtype == DType::f64)),
        rows_(rows),
        columns_of_all_(columns),
        channels_(channels),
        store_(with_storage<A>(dtype, [](auto element) { return store_pixels<decltype(element)>; })) {}

  // For rows of so many columns, at most.
  void make_room(int64_t columns) {
    together_ = rows_together(view_, rows_, columns_of_all_, columns == columns_of_all_);
    if (!straight_) pixels_.resize(together_ * columns * channels_);
  }

  // The next row; those that are held are stored before they are as many as go together.
  void begin(int64_t n, int64_t h, const ColumnRange& columns) {
    if (held_ == 0) first_ = h;
    n_ = n, h_ = h, columns_ = columns, ++held_;
  }

  // Column 0 of the row, and how far it is from there to the next.
  A* row() {
    if (straight_) return static_cast<A*>(view_.data) + n_ * view_.n + h_ * view_.h;
    return pixels_.data() + ((h_ - first_) * columns_.count - columns_.first) * channels_;
  }
  int64_t pitch() const { return straight_ ? view_.w : channels_; }

  bool straight() const { return straight_; }
  int64_t held() const { return held_; }
  bool full() const { return held_ == together_; }
  // Of the rows that are held: their pixels, one after another.
  A* pixels() { return pixels_.data(); }
  int64_t pixel_count() const { return held_ * columns_.count; }

  // Stores what is held, to a tensor like this one.
  void store_to(const View& view) const {
    store_(view, pixels_.data(), {n_, first_, columns_.first, pixel_count()}, channels_);
  }
  void store() {
    if (!straight_) store_to(view_);
    held_ = 0;
  }

 private:
  template <class T>
  static void store_pixels(const View& view, const A* pixels, const ColumnRun& run, int64_t channels) {
    constexpr int64_t kTurned = 16;  // channels, whose columns go to memory in long runs
    T* to = static_cast<T*>(view.data) + run.n * view.n + run.h * view.h + run.first * view.w;
    if (view.c == 1) {
      for (int64_t w = 0; w < run.count; ++w) narrow_copy(to + w * view.w, pixels + w * channels, channels);
    } else if (view.w == 1) {
      for (int64_t c = 0; c < channels; c += kTurned)
        turn<A>(to + c * view.c, view.c, pixels + c, channels, run.count, std::min(kTurned, channels - c));
    } else {
      for (int64_t w = 0; w < run.count; ++w)
        for (int64_t c = 0; c < channels; ++c) to[w * view.w + c * view.c] = narrow<T>(pixels[w * channels + c]);
    }
  }

  View view_;
  bool straight_;
  int64_t rows_, columns_of_all_, channels_, together_ = 1;
  void (*store_)(const View&, const A*, const ColumnRun&, int64_t);
  std::vector<A> pixels_;
  int64_t n_ = 0, h_ = 0, first_ = 0, held_ = 0;
  ColumnRange columns_{};
};

}  // namespace film::FILM_ISA
