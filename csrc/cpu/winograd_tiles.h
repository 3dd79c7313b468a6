// Which of Winograd's tiles serve for a problem, and how a kernel of more taps than their filter is cut into pieces.
#pragma once

#include <algorithm>

#include "../problem.h"
#include "density.h"
#include "winograd_transform.h"

namespace film::FILM_ISA {

// Tiles of a height and a width, each with its transforms (winograd_transform.h).
template <class HEIGHT, class WIDTH>
struct Tiles {
  using H = HEIGHT;
  using W = WIDTH;
  static constexpr int kPoints = H::N * W::N;
};
template <int MH, int MW>
using Square = Tiles<Filtering<MH, 3>, Filtering<MW, 3>>;  // MH x MW results of 3 x 3 taps
template <int MW, int R>
using Line = Tiles<Filtering<1, 1>, Filtering<MW, R>>;    // MW results of R taps along a row
using Square5 = Tiles<Filtering<2, 3>, Filtering<2, 5>>;  // 5 x 5 taps in two pieces: 48 products instead of 100
using Square7 = Tiles<Filtering<3, 4>, Filtering<3, 4>>;  // 7 x 7 taps in four pieces: 144 products instead of 441

using Strided3 = Tiles<Strided<3, 3>, Strided<3, 3>>;  // 3 x 3 taps at a stride of 2: 49 products instead of 81
using Strided5 = Tiles<Strided<2, 5>, Strided<2, 5>>;  // 5 x 5 taps at a stride of 2: 49 products instead of 100

// A kernel of more taps than the filter has is cut into pieces, in each dimension of M taps and the last one of R.
// Piece (i, j) reads the tiles that are i further down and j further right, and all pieces add to the same products.
template <class T>
struct Pieces {
  Pieces(int64_t kernel_h, int64_t kernel_w)
      : along_h((kernel_h - T::H::R) / T::H::M + 1), along_w((kernel_w - T::W::R) / T::W::M + 1) {}
  int64_t count() const { return along_h * along_w; }
  int64_t taps() const { return ((along_h - 1) * T::H::M + T::H::R) * ((along_w - 1) * T::W::M + T::W::R); }

  struct Piece {
    int64_t h, w, rows, columns;  // its first tap, and how many taps it has each way
  };
  Piece at(int64_t number) const {
    const int64_t i = number / along_w, j = number % along_w;
    return {i * T::H::M, j * T::W::M, i + 1 < along_h ? T::H::M : T::H::R, j + 1 < along_w ? T::W::M : T::W::R};
  }

  int64_t along_h, along_w;
};

// Larger tiles save more products and lose more digits. In float32 the digits decide which tiles serve: the error may
// be twice plain PyTorch's own, and `python -m bench.errors` measures it. It depends on the kernel (more taps make
// plain PyTorch's sums longer), on how plain PyTorch adds (in groups, in small gradients and with unusual padding its
// sums are shorter), and most of all on what is multiplied (density.h). The types of 16 bits are worked on in float32,
// and have digits to spare.
//
// The least density at which tiles serve:
constexpr double kDense = 0.4;      // Square<2, 4>, Line<4, 3> and Line<2, 5>
constexpr double kHalfDense = 0.3;  // Square5 and Square7
constexpr double kNotSparse =
    1.0 / 12;  // Square<2, 2>, Line<2, 3>, Strided3 and Strided5; below this, everything is summed directly
// Where fewer channels count, or where filters have more coherence (transforms make those larger), none but the tiles
// of kNotSparse serve.
constexpr double kFewChannels = 5, kConstant = 0.5;
// Where fewer terms of its sums are not 0, dW is summed directly.
constexpr double kFewTerms = 32;

inline bool suits_large_tiles(const Spread& spread, double density) {
  return spread.density >= density && spread.channels >= kFewChannels && spread.coherence <= kConstant;
}

inline bool has_taps(const Axis& a, int64_t taps) {
  return a.kernel == taps && a.stride == 1 && (taps == 1 || a.dilation == 1);
}

// With fewer channels or positions, transforms cost more than products save.
inline bool has_enough(const Problem& p, int64_t channels, int64_t positions) {
  return std::min(p.group_in(), p.group_out()) >= channels && p.positions() >= positions;
}

inline bool pads_by_more_than_half(const Problem& p) { return p.h.pad > p.h.kernel / 2 || p.w.pad > p.w.kernel / 2; }

// Whether the kernel has several rows and columns, but is not 3 x 3.
inline bool has_large_kernel(const Problem& p) {
  const auto is_odd = [](const Axis& a) { return has_taps(a, 3) || has_taps(a, 5) || has_taps(a, 7); };
  return is_odd(p.h) && is_odd(p.w) && !(p.h.kernel == 3 && p.w.kernel == 3);
}

// For a kernel of 3 x 3, calls body(tiles) with the tiles that serve, and returns what it returns; or returns false
// where none do. In float32 they are SQUARE where spread() allows it, which is asked for only where it decides.
template <class SQUARE, class Factors, class Body>
bool with_square_tiles(const Problem& p, const Factors& spread, const Body& body) {
  if (!has_taps(p.h, 3) || !has_taps(p.w, 3) || !has_enough(p, 16, 64)) return false;
  if (p.dtype != DType::f32) return body(Square<4, 4>());
  const Spread found = spread();
  if (found.density < kNotSparse) return false;
  return p.groups == 1 && suits_large_tiles(found, kDense) ? body(SQUARE()) : body(Square<2, 2>());
}

// The same for a kernel of a single row. In float32 they are LINE for 3 taps, where spread() allows it.
template <class LINE, class Factors, class Body>
bool with_line_tiles(const Problem& p, const Factors& spread, const Body& body) {
  if (!has_taps(p.h, 1) || !has_enough(p, 64, 128) || !(has_taps(p.w, 3) || has_taps(p.w, 5))) return false;
  if (p.dtype != DType::f32) return p.w.kernel == 3 ? body(Line<4, 3>()) : body(Line<2, 5>());
  const Spread found = spread();
  const bool large = suits_large_tiles(found, kDense);
  if (p.w.kernel == 5 && large) return body(Line<2, 5>());
  return found.density >= kNotSparse && (p.w.kernel == 3 && large ? body(LINE()) : body(Line<2, 3>()));
}

// The same for a kernel of several rows that is not 3 x 3. With unusual padding plain PyTorch takes another way, which
// loses fewer digits.
template <class SQUARE, class Factors, class Body>
bool with_large_tiles(const Problem& p, bool unusual_padding, const Factors& spread, const Body& body) {
  const bool short_sums = p.h.kernel == 3;  // in plain PyTorch
  if (!has_large_kernel(p) || !(short_sums ? has_enough(p, 32, 1024) : has_enough(p, 12, 64))) return false;
  if (p.dtype == DType::f32) {
    const Spread found = spread();
    if (found.density < kNotSparse) return false;
    if (unusual_padding || !suits_large_tiles(found, p.w.kernel == 3 ? kDense : kHalfDense))
      return body(Square<2, 2>());
  }
  if (p.w.kernel == 3) return body(SQUARE());
  if (p.w.kernel == 5) return body(Square5());
  return p.h.kernel == 7 ? body(Square7()) : body(Square<2, 2>());
}

// Calls body(tiles) for a kernel at a stride of 2 that has tiles; otherwise returns false. Its weights have so many
// points that it takes more positions until products make up for them, and its tiles of many channels are so long that
// few of them share a block's weights.
template <class Body>
bool with_strided_tiles(const Problem& p, const Body& body) {
  const auto is_strided = [](const Axis& a, int64_t taps) {
    return a.kernel == taps && a.stride == 2 && a.dilation == 1;
  };
  constexpr int64_t kMostSources = 160;
  if (p.dtype == DType::f64 || p.group_in() > kMostSources) return false;
  if (is_strided(p.h, 3) && is_strided(p.w, 3)) return has_enough(p, 16, 1024) && body(Strided3());
  return is_strided(p.h, 5) && is_strided(p.w, 5) && has_enough(p, 16, 256) && body(Strided5());
}

// The same for every kernel of forward and grad_input at a stride of 1.
template <class SQUARE, class LINE, class Factors, class Body>
bool with_tiles(const Problem& p, bool unusual_padding, const Factors& spread, const Body& body) {
  if (p.dtype == DType::f64) return false;
  if (with_square_tiles<SQUARE>(p, spread, body)) return true;
  if (p.dtype == DType::f32 && p.groups > 1) return false;
  return with_line_tiles<LINE>(p, spread, body) || with_large_tiles<SQUARE>(p, unusual_padding, spread, body);
}

// The same for grad_weight, at any stride, where density() is the density of its products. In float32 larger tiles than
// 2 x 2 lose too many digits of dgamma, however many positions there are; and Square5 would have 3.4 times plain
// PyTorch's error in dW where its sums are short.
template <class Density, class Body>
bool with_gradient_tiles(const Problem& p, const Density& density, const Body& body) {
  const auto is_square = [&] { return has_taps(p.h, 3) && has_taps(p.w, 3) && has_enough(p, 16, 64); };
  if (p.dtype == DType::f64) return false;
  const auto has_terms = [&] { return p.dtype != DType::f32 || p.positions() * density() >= kFewTerms; };
  // At a stride of 2, 3 x 3 taps and few channels are summed directly in as little time.
  if (p.h.kernel == 5 && has_enough(p, 32, 256) &&
      with_strided_tiles(p, [&](auto tiles) { return has_terms() && body(tiles); }))
    return true;
  if (p.dtype == DType::f32) {
    if (!is_square() && !(has_large_kernel(p) && p.groups == 1 && has_enough(p, 12, 256))) return false;
    return has_terms() && body(Square<2, 2>());
  }
  if (is_square()) return body(Square<4, 4>());
  if (has_taps(p.h, 1) && has_taps(p.w, 3) && has_enough(p, 64, 128)) return body(Line<4, 3>());
  if (has_taps(p.h, 1) && has_taps(p.w, 5) && has_enough(p, 64, 128)) return body(Line<2, 5>());
  return has_large_kernel(p) && has_enough(p, 12, 256) && body(Square<2, 2>());
}

}  // namespace film::FILM_ISA
