// The weights of a pass at Winograd's points, and how they are multiplied.
#pragma once

#include <optional>

#include "convolve.h"
#include "winograd_points.h"

namespace film::FILM_ISA {

// The distance between points that hold so many elements each. It is a little longer than that, because one tile's
// elements at all points are read or written together, and should not fall into the same cache sets.
inline int64_t apart(int64_t elements) { return elements + 64 / static_cast<int64_t>(sizeof(float)); }

// How points are multiplied, and how exactly.
struct PointTile {
  int64_t most_rows;                                                  // of the register tile
  MultiplyTile<float> (*multiplier)(int64_t channels, int64_t rows);  // the register tile of that size
  bool weights_in_double, results_in_double;                          // what those are transformed in
};

// Digits are short in float32 alone, since the types of 16 bits are worked on in float32. Larger tiles T lose more
// digits, so their sums are more careful; and plain PyTorch's gradient has more of them than its output.
template <class T>
PointTile point_tile(DType dtype, bool of_gradient) {
  const bool exact = dtype == DType::f32;
  if (exact && T::W::POINTS > 4) return {kPreciseRows, precise_tile_multiplier, true, of_gradient};
  return {kTileRows, tile_multiplier<float, kShortChunk>, exact, exact && of_gradient};
}

// Source channels that a thread makes the weights of before it multiplies by them. The register tiles add the products
// of so many up before they add them to others, so that it makes no difference to the sums.
constexpr int64_t kSourcesTogether = 64;
static_assert(kSourcesTogether % kShortChunk == 0);

// The transformed weights of a pass, for each group and panel [point][piece][source channel][vectors * lanes].
template <class T>
class WinogradWeights {
 public:
  // Those that are to be made of `weight`; `transposed` is what it is for pack_weights.
  WinogradWeights(const PointTile& tile, const Pass<float>& pass, const Problem& p, const View& weight, bool transposed)
      : WinogradWeights(p, transposed) {
    from_.emplace(From{tile, pass, p, weight, transposed});
  }

  // Those that `transform` has written to `data` before.
  WinogradWeights(const Problem& p, bool transposed, const float* data = nullptr)
      : groups_(p.groups),
        sources_(transposed ? p.group_out() : p.group_in()),
        pieces_(p.h.kernel, p.w.kernel),
        panels_{transposed ? p.group_in() : p.group_out()},
        data_(data) {}

  // Whether they are not there before this call.
  bool are_own() const { return from_.has_value(); }
  int64_t elements() const { return groups_ * panels_.count() * panel_size(); }

  // Makes all of them, where they are not there.
  void make() {
    if (data_ != nullptr) return;
    own_.emplace(elements());
    transform(*own_);
    data_ = *own_;
  }

  // The same to `data`, for calls to come.
  void transform(float* data) const {
    with_maker([&](const auto& maker) {
      const int64_t cuts = (sources_ + kPacked - 1) / kPacked;
      parallel(groups_ * panels_.count() * cuts, [&](int64_t begin, int64_t end) {
        Scratch<float> taps(taps_size());
        for (int64_t i = begin; i < end; ++i) {
          const int64_t s0 = i % cuts * kPacked, panel = i / cuts % panels_.count(), g = i / cuts / panels_.count();
          maker({data + (g * panels_.count() + panel) * panel_size() + s0 * width(panel), point(),
                 sources_ * width(panel)},
                g, panel, {s0, std::min(kPacked, sources_ - s0)}, taps);
        }
      });
    });
  }

  // Where some source channels have their weights at the first point, in the first piece; and how far it is from one
  // point to the next, and from one piece to the next.
  struct Some {
    float* at;
    int64_t point, piece;
  };

  // A panel's weights, of all that were made.
  Some at(int64_t group, int64_t panel) const {
    float* first = const_cast<float*>(data_) + (group * panels_.count() + panel) * panel_size();
    return {first, point(), sources_ * width(panel)};
  }

  // Room for kSourcesTogether source channels of a panel, and for the taps that they are made of.
  int64_t some_size() const { return T::kPoints * some_point(); }
  int64_t taps_size() const { return pieces_.taps() * kPacked * panels_.kWidth; }
  Some some_in(float* room, int64_t panel) const { return {room, some_point(), kSourcesTogether * width(panel)}; }

  // Calls body(maker), where maker(some, group, panel, sources, taps) makes the weights of a range of source channels.
  template <class Body>
  void with_maker(const Body& body) const {
    const Problem& p = from_->p;
    const bool transposed = from_->transposed;
    const auto transform_taps = from_->tile.weights_in_double ? transform_filter<T, double> : transform_filter<T>;
    with_storage<float>(p.dtype, [&](auto element) {
      constexpr int64_t L = kLanes<float>;
      const LanePacker<float, decltype(element)> pack(from_->pass, from_->weight, p.h, p.w, kPacked, transposed);
      body([&](const Some& some, int64_t g, int64_t panel, const ChannelRange& sources, float* taps) {
        const int64_t width = this->width(panel), tap = kPacked * width, line = p.w.kernel * tap;
        for (int64_t first = 0; first < sources.count; first += kPacked) {
          const int64_t count = std::min(kPacked, sources.count - first);
          for (int64_t v = 0; v < width; v += L) {
            const int64_t c = panel * panels_.kWidth + v;
            pack(taps + v, width, g * (transposed ? 0 : panels_.channels) + c, std::min(L, panels_.channels - c),
                 g * (transposed ? sources_ : 0) + sources.first + first, 0, count);
          }
          for (int64_t number = 0; number < pieces_.count(); ++number) {
            const auto piece = pieces_.at(number);
            for (int64_t at = 0; at < count * width; at += L)
              transform_taps({some.at + number * some.piece + first * width + at, some.point},
                             taps + piece.h * line + piece.w * tap + at, {line, tap}, {piece.rows, piece.columns});
          }
        }
      });
    });
  }

 private:
  struct From {
    const PointTile& tile;
    const Pass<float>& pass;
    const Problem& p;
    const View& weight;
    bool transposed;
  };
  static constexpr int64_t kPacked = 16;  // source channels whose taps are packed together

  int64_t width(int64_t panel) const { return panels_.vectors(panel) * kLanes<float>; }
  int64_t point() const { return apart(pieces_.count() * sources_ * panels_.kWidth); }
  int64_t some_point() const { return apart(pieces_.count() * kSourcesTogether * panels_.kWidth); }
  int64_t panel_size() const { return T::kPoints * point(); }

  int64_t groups_, sources_;
  Pieces<T> pieces_;
  Panels<float> panels_;
  std::optional<From> from_;
  std::optional<Scratch<float>> own_;
  const float* data_;
};

}  // namespace film::FILM_ISA
