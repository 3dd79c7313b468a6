// Which tiles Winograd's filtering takes for a kernel, and how kernels of more taps than a tile's filter are cut.
#pragma once

#include <algorithm>

#include "../problem.h"
#include "density.h"
#include "winograd_transform.h"

namespace film::FILM_ISA {

// The sizes of tiles along both dimensions, and their transforms.
template <class HEIGHT, class WIDTH>
struct Tiles {
  using H = HEIGHT;
  using W = WIDTH;
  static constexpr int kPoints = H::N * W::N;
};
template <int MH, int MW>
using Square = Tiles<Filtering<MH, 3>, Filtering<MW, 3>>;  // for 3 x 3 taps
template <int MW, int R>
using Line = Tiles<Filtering<1, 1>, Filtering<MW, R>>;    // for R taps along a row
using Square5 = Tiles<Filtering<2, 3>, Filtering<2, 5>>;  // 48 products instead of 100
using Square7 = Tiles<Filtering<3, 4>, Filtering<3, 4>>;  // 144 instead of 441

// A kernel of more taps than the filter has is cut into pieces of M taps, the last one of R, in each dimension: piece
// (i, j) reads the tiles that are i further down and j to the right, and all pieces add to the same products.
template <class T>
struct Pieces {
  Pieces(int64_t kernel_h, int64_t kernel_w)
      : along_h((kernel_h - T::H::R) / T::H::M + 1), along_w((kernel_w - T::W::R) / T::W::M + 1) {}
  int64_t count() const { return along_h * along_w; }

  struct Piece {
    int64_t h, w, rows, columns;  // its first tap, and how many
  };
  Piece at(int64_t number) const {
    const int64_t i = number / along_w, j = number % along_w;
    return {i * T::H::M, j * T::W::M, i + 1 < along_h ? T::H::M : T::H::R, j + 1 < along_w ? T::W::M : T::W::R};
  }

  int64_t along_h, along_w;
};

// Larger tiles save more products and lose more digits; how many, against plain PyTorch's own error (which may be
// doubled), `python -m bench.errors` measures. In float32 that decides which tiles serve. It depends on the kernel
// (more taps make plain PyTorch's sums longer), on how plain PyTorch adds (in groups, in small gradients and with
// unusual padding its sums are shorter), and most of all on what is multiplied (density.h). The types of 16 bits are
// worked on in float32, and have digits to spare.
constexpr double kDense = 0.4;           // the least density for 2 x 4, and for 4 of 3 or 2 of 5 taps in a row
constexpr double kHalfDense = 0.3;       // for Square5 and Square7
constexpr double kNotSparse = 1.0 / 12;  // for 2 x 2, and for 2 of 3 taps in a row; below, all is summed directly
constexpr double kFewChannels = 5;       // with fewer that count, no larger tile than these last ones serves,
constexpr double kConstant = 0.5;        // nor for filters of more coherence, which transforms make larger
constexpr double kFewTerms = 32;         // with fewer products that are not with 0 in its sums, dW is summed directly

inline bool suits_large_tiles(const Spread& spread, double density) {
  return spread.density >= density && spread.channels >= kFewChannels && spread.coherence <= kConstant;
}

inline bool has_taps(const Axis& a, int64_t taps) {
  return a.kernel == taps && a.stride == 1 && (taps == 1 || a.dilation == 1);
}

// With fewer, transforms cost more than products save.
inline bool has_enough(const Problem& p, int64_t channels, int64_t positions) {
  return std::min(p.group_in(), p.group_out()) >= channels && p.positions() >= positions;
}

inline bool pads_by_more_than_half(const Problem& p) { return p.h.pad > p.h.kernel / 2 || p.w.pad > p.w.kernel / 2; }

// Of more than a row, but not 3 x 3.
inline bool has_large_kernel(const Problem& p) {
  const auto is_odd = [](const Axis& a) { return has_taps(a, 3) || has_taps(a, 5) || has_taps(a, 7); };
  return is_odd(p.h) && is_odd(p.w) && !(p.h.kernel == 3 && p.w.kernel == 3);
}

// Calls body(tiles) with those for kernels of 3 x 3, SQUARE in float32 where the factors allow it, and returns what it
// does; false where the problem is not one for them. spread() is asked for only where it decides.
template <class SQUARE, class Factors, class Body>
bool with_square_tiles(const Problem& p, const Factors& spread, const Body& body) {
  if (!has_taps(p.h, 3) || !has_taps(p.w, 3) || !has_enough(p, 16, 64)) return false;
  if (p.dtype != DType::f32) return body(Square<4, 4>());
  const Spread found = spread();
  if (found.density < kNotSparse) return false;
  return p.groups == 1 && suits_large_tiles(found, kDense) ? body(SQUARE()) : body(Square<2, 2>());
}

// The same for kernels of a single row, with LINE in float32 for 3 taps.
template <class LINE, class Factors, class Body>
bool with_line_tiles(const Problem& p, const Factors& spread, const Body& body) {
  if (!has_taps(p.h, 1) || !has_enough(p, 64, 128) || !(has_taps(p.w, 3) || has_taps(p.w, 5))) return false;
  if (p.dtype != DType::f32) return p.w.kernel == 3 ? body(Line<4, 3>()) : body(Line<2, 5>());
  const Spread found = spread();
  const bool large = suits_large_tiles(found, kDense);
  if (p.w.kernel == 5 && large) return body(Line<2, 5>());
  return found.density >= kNotSparse && (p.w.kernel == 3 && large ? body(LINE()) : body(Line<2, 3>()));
}

// The same for kernels of several rows, but not 3 x 3. With padding that is not usual for them, plain PyTorch takes
// another way, which loses fewer digits.
template <class SQUARE, class Factors, class Body>
bool with_large_tiles(const Problem& p, bool unusual_padding, const Factors& spread, const Body& body) {
  const bool short_sums = p.h.kernel == 3;  // of plain PyTorch
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

// The same for all kernels of forward and grad_input.
template <class SQUARE, class LINE, class Factors, class Body>
bool with_tiles(const Problem& p, bool unusual_padding, const Factors& spread, const Body& body) {
  if (p.dtype == DType::f64) return false;
  if (with_square_tiles<SQUARE>(p, spread, body)) return true;
  if (p.dtype == DType::f32 && p.groups > 1) return false;
  return with_line_tiles<LINE>(p, spread, body) || with_large_tiles<SQUARE>(p, unusual_padding, spread, body);
}

// The same for grad_weight; density() is that of its products. Larger tiles lose digits in dgamma, however many
// positions there are, and Square5 would be at 3.4 of short sums in dW.
template <class Density, class Body>
bool with_gradient_tiles(const Problem& p, const Density& density, const Body& body) {
  const auto is_square = [&] { return has_taps(p.h, 3) && has_taps(p.w, 3) && has_enough(p, 16, 64); };
  if (p.dtype == DType::f64) return false;
  if (p.dtype == DType::f32) {
    if (!is_square() && !(has_large_kernel(p) && p.groups == 1 && has_enough(p, 12, 256))) return false;
    return p.positions() * density() >= kFewTerms && body(Square<2, 2>());
  }
  if (is_square()) return body(Square<4, 4>());
  if (has_taps(p.h, 1) && has_taps(p.w, 3) && has_enough(p, 64, 128)) return body(Line<4, 3>());
  if (has_taps(p.h, 1) && has_taps(p.w, 5) && has_enough(p, 64, 128)) return body(Line<2, 5>());
  return has_large_kernel(p) && has_enough(p, 12, 256) && body(Square<2, 2>());
}

}  // namespace film::FILM_ISA
