// Strips: a few rows of one sample and group, position by position with the channels side by side, zeros where the
// convolution pads, in the accumulator's type. Every layout and storage type is turned into this one, a strip at a
// time, so that the loops behind know a single form of their input and no edges.
#pragma once

#include "kernels.h"
#include "ranges.h"
#include "scratch.h"
#include "transpose.h"

namespace film::FILM_ISA {

// Loads some channels of a run, to dst[column][pitch].
template <class A, class T>
void load_row(A* dst, int64_t pitch, const View& view, const ColumnRun& run, const ChannelRange& range) {
  const T* src =
      static_cast<const T*>(view.data) + run.n * view.n + run.h * view.h + run.first * view.w + range.first * view.c;
  const int64_t columns = run.count, channels = range.count;
  if (view.c == 1 && view.w == channels && pitch == channels) {
    widen_copy(dst, src, columns * channels);
  } else if (view.c == 1) {
    for (int64_t w = 0; w < columns; ++w) widen_copy(dst + w * pitch, src + w * view.w, channels);
  } else if (view.w == 1) {
    turn<A>(dst, pitch, src, view.c, channels, columns);
  } else {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t w = 0; w < columns; ++w) dst[w * pitch + c] = widen<A>(src[w * view.w + c * view.c]);
  }
}

// Calls body(T()) with the type that tensors of `dtype` are stored in, where A is what they are worked on in.
template <class A, class F>
auto with_storage(DType dtype, const F& body) {
  if constexpr (std::is_same_v<A, double>) {
    return body(double());
  } else {
    switch (dtype) {
      case DType::bf16:
        return body(bf16());
      case DType::f16:
        return body(f16());
      default:
        return body(float());
    }
  }
}

template <class A>
using LoadRow = void (*)(A* dst, int64_t pitch, const View&, const ColumnRun&, const ChannelRange&);

template <class A>
LoadRow<A> row_loader(DType dtype) {
  return with_storage<A>(dtype, [](auto element) -> LoadRow<A> { return load_row<A, decltype(element)>; });
}

// `count` (at most 32) bits from bit `first` on, or all ones where there are no bits. Reads no byte but those that hold
// them.
inline uint32_t bits_at(const uint8_t* row, int64_t first, int64_t count) {
  if (row == nullptr) return ~uint32_t(0);
  const int shift = first & 7;
  const uint8_t* p = row + (first >> 3);
  if (shift == 0 && count == 16) {  // the usual case of 16 lanes
    uint16_t pair;
    std::memcpy(&pair, p, 2);
    return pair;
  }
  const int bytes = static_cast<int>((shift + count + 7) >> 3);
  uint64_t word = 0;
  for (int i = 0; i < bytes; ++i) word |= static_cast<uint64_t>(p[i]) << (8 * i);
  return static_cast<uint32_t>(word >> shift) & static_cast<uint32_t>((uint64_t(1) << count) - 1);
}

// Writes `count` (at most 32) bits. Earlier bits of the first byte are kept, and its others must be 0 beforehand; later
// bits of the last byte become 0.
inline void put_bits(uint8_t* row, int64_t first, int64_t count, uint32_t bits) {
  const int shift = first & 7;
  uint8_t* p = row + (first >> 3);
  if (shift == 0 && count == 16) {  // the usual case of 16 lanes
    const uint16_t pair = static_cast<uint16_t>(bits);
    std::memcpy(p, &pair, 2);
    return;
  }
  const int bytes = static_cast<int>((shift + count + 7) >> 3);
  const uint64_t word = (static_cast<uint64_t>(bits) & ((uint64_t(1) << count) - 1)) << shift;
  for (int i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>((i == 0 && shift ? p[0] : 0) | (word >> (8 * i)));
}

// A source of strips, which writes the channels of a run's columns side by side: the input itself.
template <class A>
struct Plain {
  View view;
  LoadRow<A> load;

  void operator()(A* dst, const ColumnRun& run, const ChannelRange& channels) const {
    load(dst, channels.count, view, run, channels);
  }
};

// Makes u = g * slope of the pixels of a row, in place of g. The slope is read off the bits, and is 1 where there are
// none. `scale` (gamma), where it is not null, is multiplied in first, as autograd does, so that a lower slope of 0
// gives 0 whatever gamma is.
template <class A>
void apply_bits(A* pixels, int64_t pitch, int64_t columns, int64_t channels, const uint8_t* bits, int64_t bit_row,
                int64_t first_bit, A lower_slope, const A* scale) {
  constexpr int L = kLanes<A>;
  const Vector<A> slope = splat<A>(lower_slope), zero{};
  for (int64_t w = 0; w < columns; ++w) {
    A* p = pixels + w * pitch;
    const uint8_t* row = bits == nullptr ? nullptr : bits + w * bit_row;
    int64_t c = 0;
    for (; c + L <= channels; c += L) {
      Vector<A> v = load(p + c);
      if (scale != nullptr) v *= load(scale + c);
      const Mask<A> upper = from_bits<A>(bits_at(row, first_bit + c, L));
      store(p + c, upper ? v : (lower_slope == 0 ? zero : v * slope));
    }
    if (c < channels) {
      const uint32_t upper = bits_at(row, first_bit + c, channels - c);
      for (int64_t i = 0; c + i < channels; ++i) {
        A v = p[c + i];
        if (scale != nullptr) v *= scale[c + i];
        p[c + i] = upper >> i & 1 ? v : (lower_slope == 0 ? A(0) : v * lower_slope);
      }
    }
  }
}

// Factors (N, K) as the kernels read them: in the accumulator's type with `offset` added, or `fill` plus `offset` where
// the caller gave none. Samples that share their factors in the caller's tensor share them here too, so that this takes
// no more memory than that. From a group's first channel on, `width` elements can be read, of which those past the
// group's channels mean nothing.
template <class A>
class Factors {
 public:
  Factors(const Problem& p, const Matrix& m, int64_t width, A offset, A fill, bool per_sample = true)
      : channels_(p.group_out()),
        rows_(per_sample && m.data != nullptr && m.n != 0 ? p.batch : 1),
        row_(rows_ > 1 ? p.out_channels : 0),
        data_(rows_ * p.out_channels + width - channels_) {
    const int64_t count = rows_ * p.out_channels;
    if (m.data == nullptr)
      std::fill(data_ + 0, data_ + count, fill + offset);
    else
      with_storage<A>(p.dtype, [&](auto element) { fill_from<decltype(element)>(p, m, offset); });
    std::fill(data_ + count, data_ + count + width - channels_, A(0));
  }
  const A* at(int64_t n, int64_t group) const { return data_ + n * row_ + group * channels_; }

 private:
  template <class T>
  void fill_from(const Problem& p, const Matrix& m, A offset) {
    const T* from = static_cast<const T*>(m.data);
    for (int64_t n = 0; n < rows_; ++n)
      for (int64_t k = 0; k < p.out_channels; ++k)
        data_[n * p.out_channels + k] = widen<A>(from[n * m.n + k * m.k]) + offset;
  }

  int64_t channels_, rows_, row_;
  Scratch<A> data_;
};

}  // namespace film::FILM_ISA
