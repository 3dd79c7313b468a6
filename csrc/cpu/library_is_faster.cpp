// Where PyTorch's own convolution with passes after it was measured to be faster than the kernels here: the one place
// that says so. bench/NOTES.md has the figures ("Where the library is faster").
#include "library_is_faster.h"

#include <limits>

#include "../processor.h"
#include "depthwise.h"
#include "forward_weights.h"

namespace film::FILM_ISA {
namespace {

// Groups of fewer output channels are read and written plane by plane, with so little work for each element that the
// way through a tile's memory takes longer than the products do.
constexpr int64_t kLeastGroup = 4;
// In channels_last their planes have to be turned besides, which pays from so many channels on.
constexpr int64_t kLeastGroupTurned = 8;

constexpr double kFarTaps = 6144;

// The kernels here widen bfloat16 to float32. Where the library multiplies it faster than that, it is ahead from so
// many products for each output element on,
constexpr int64_t kManyProducts = 256;
// but for kernels of which Winograd's filtering leaves no more than a third of the products: 3 x 3 taps in 4 x 4 tiles,
// a quarter. Half of them, as in 5 x 5 and in rows, is what a library of twice the speed has too, without transforms.
constexpr double kLargeSaving = 3;
// A library with tiles of AMX is ahead of those too from so many products on, and in channels_last always: there it
// need not turn what it reads.
constexpr int64_t kManyProductsOfTiles = 384;

bool has_narrow_groups(const Problem& p, bool channels_last) {
  return p.groups > 1 && p.group_out() < (channels_last ? kLeastGroupTurned : kLeastGroup);
}

// Depthwise kernels (depthwise.h) save the passes after the convolution; alone they are as fast as oneDNN's, faster for
// some sizes and slower for others. What oneDNN does not multiply, PyTorch takes ten times as long for and more.
bool is_multiplied_by_onednn(const Problem& p) { return p.dtype == DType::f32 || p.dtype == DType::bf16; }

// Pairs are multiplied here as fast as there, and what is saved around them pays up to so many products; the library's
// sums along rows alone are slower, so that these pay up to more.
constexpr int64_t kManyProductsOfPairs = 576, kManyProductsOfRowsOfPairs = 1024;

// How fast the library multiplies bfloat16 on this machine, against float32: with AVX512_BF16, in pairs.
enum class Bfloat16 { no_faster, twice_as_fast, in_tiles };

Bfloat16 bfloat16_of_library() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("amx-bf16")) return Bfloat16::in_tiles;
#endif
  return multiplies_pairs_fast() ? Bfloat16::twice_as_fast : Bfloat16::no_faster;
}

// How many products of a direct sum there are for each that tiles T take.
template <class T>
double saving_of(const Problem& p) {
  const double direct = p.h.kernel * p.w.kernel * T::H::M * T::W::M;
  return direct / (T::kPoints * Pieces<T>(p.h.kernel, p.w.kernel).count());
}

// The least of it in forward and the gradients, 1 where one of them is summed directly. The tiles are those for data
// without zeros; for types of 16 bits, which have digits to spare, the sizes alone decide.
double saving_by_winograd(const Problem& p) {
  double least = std::numeric_limits<double>::max();
  const auto consider = [&](auto tiles) {
    least = std::min(least, saving_of<decltype(tiles)>(p));
    return true;
  };
  const auto spread = [&] {
    const Sample dense{1, 0, std::vector<float>(p.in_channels, 1)};
    return Spread(dense, dense);
  };
  const bool serves = with_forward_tiles(p, spread, consider) && with_gradient_tiles(p, [] { return 1.0; }, consider);
  return serves ? least : 1;
}

// Where Winograd's filtering leaves so few of the products, what has to pay is the work on the weight: to transform it
// at every call, or, where it was packed before, to read it. That takes so many positions, fewer where the weight of
// all points stays in L2.
constexpr double kSavingAlone = 2;
constexpr int64_t kNearWeight = 2 << 20;  // bytes
struct LeastPositions {
  int64_t near, far;
};
constexpr LeastPositions kTransformed{256, 1024};  // of a weight that is transformed at every call
constexpr LeastPositions kPacked{64, 256};         // of one that is packed
// The same where the library multiplies floats no faster than the kernels here, and memory is as fast as that asks for.
constexpr LeastPositions kTransformedBySlower{32, 64}, kPackedBySlower{32, 64};
constexpr int64_t kManyPositions = 1024;
// Kernels of 5 and 7 have so many points that it takes more, as measured there, from so many channels on.
constexpr LeastPositions kTransformedLarge{512, 704};
constexpr int64_t kChannelsOfLarge = 12;

// Below so many products a call takes longer than the sum.
constexpr int64_t kProductsOfCall = 2 << 20;
// Planes for a few output channels, which leave most lanes idle in the library.
constexpr int64_t kFewOutputs = 4, kManyInputs = 16, kPositionsOfPlanes = 1024;

bool has_near_weight(const Problem& p) {
  constexpr int64_t kPoints = Square<2, 4>::kPoints;
  return p.out_channels * p.group_in() * kPoints * static_cast<int64_t>(sizeof(float)) <= kNearWeight;
}

// Of a kernel that is cut into pieces.
bool has_few_for_pieces(const Problem& p) {
  const bool enough = std::min(p.in_channels, p.out_channels) >= kChannelsOfLarge;
  if (!multiplies_one_vector() || p.groups > 1 || !has_large_kernel(p) || !enough) return false;
  return p.positions() < (has_near_weight(p) ? kTransformedLarge.near : kTransformedLarge.far);
}

bool has_few_positions(const Problem& p, bool packed) {
  const bool slower = multiplies_one_vector();
  const LeastPositions least =
      packed ? (slower ? kPackedBySlower : kPacked) : (slower ? kTransformedBySlower : kTransformed);
  return p.positions() < (has_near_weight(p) ? least.near : least.far);
}

// Whether it is one that Winograd's filtering serves from some number of positions on. Below that, what is said of few
// positions holds all the more for the direct sum, whose weight is read for fewer still.
bool filters_with_more_positions(Problem p) {
  p.batch = kManyPositions;
  return saving_by_winograd(p) >= kSavingAlone;
}

// A convolution without anything behind it has no pass to save, so that its sum itself has to be faster.
bool saves_little(const Problem& p, const Asked& asked) {
  if (p.positions() * p.out_channels * p.group_in() * taps_of(p) < kProductsOfCall) return true;
  if (p.groups == 1 && p.out_channels <= kFewOutputs)
    return p.in_channels < kManyInputs || p.positions() < kPositionsOfPlanes || p.h.stride * p.w.stride > 1;
  return saving_by_winograd(p) < kSavingAlone || has_few_positions(p, asked.use == Use::alone_packed);
}

constexpr int64_t kLeastPositions = 32;
// Of a small sample.
constexpr int64_t kProductsAtOneTap = 4 << 20, kProductsPacked = 1 << 19;

// In float32 most are faster: a call of oneDNN's turns its input, its weight and its output. Longer sums, in which that
// is little, are the library's, where the weight is packed at every call, or before.
constexpr int64_t kLongSum = 2048, kLongSumPacked = 4800;

bool is_slow_in_floats(const Problem& p, const Asked& asked) {
  const bool packed = asked.use == Use::alone_packed;
  const bool saves = saving_by_winograd(p) >= kSavingAlone && !has_few_positions(p, packed);
  return is_slow_alone(p, asked, kProductsByVectors) ||
         (!saves && p.group_in() * taps_of(p) > (packed ? kLongSumPacked : kLongSum));
}

}  // namespace

bool is_slow_alone(const Problem& p, const Asked& asked, int64_t least) {
  const int64_t taps = taps_of(p);
  if (p.positions() < kLeastPositions) return true;
  if (p.out_channels <= kFewOutputs && p.h.stride * p.w.stride > 1) return true;
  if (asked.channels_last && taps == 1 && p.group_in() < kManyInputs) return true;  // as it is in memory already
  if (!asked.small_sample) return false;
  const int64_t products = p.positions() * p.out_channels * p.group_in() * taps;
  if (taps == 1) return products < kProductsAtOneTap;
  return products < (asked.use == Use::alone_packed ? kProductsPacked : least);
}

bool has_far_taps(const Problem& p) {
  const auto reach = [](const Axis& axis) { return static_cast<double>(axis.dilation) * (axis.kernel - 1); };
  return std::max(reach(p.h), reach(p.w)) >= kFarTaps;
}

bool is_filtered_to_a_third(const Problem& p) { return saving_by_winograd(p) >= kLargeSaving; }

// Where the library multiplies in tiles, it is not pairs that are to be compared with it.
bool library_is_faster_than_pairs(const Problem& p, const Asked& asked) {
  const bool by_pairs =
      p.dtype == DType::bf16 && asked.use == Use::film && !suits_depthwise(p) && !is_filtered_to_a_third(p);
  if (!by_pairs || bfloat16_of_library() == Bfloat16::in_tiles) return library_is_faster(p, asked);
  const bool row = p.h.kernel == 1 && p.w.kernel > 1;
  return has_narrow_groups(p, asked.channels_last) || has_far_taps(p) ||
         p.group_in() * taps_of(p) >= (row ? kManyProductsOfRowsOfPairs : kManyProductsOfPairs);
}

// From the sizes alone, without the data.
bool library_is_faster(const Problem& p, const Asked& asked) {
  const bool alone = asked.use != Use::film;
  if (suits_depthwise(p)) return alone && is_multiplied_by_onednn(p);
  if (has_narrow_groups(p, asked.channels_last) || has_far_taps(p)) return true;
  if (p.dtype == DType::f32) {
    if (alone) return is_slow_in_floats(p, asked);
    return has_few_for_pieces(p) || (has_few_positions(p, /*packed=*/false) && filters_with_more_positions(p));
  }
  if (alone && (p.dtype == DType::f64 || saves_little(p, asked))) return true;
  const int64_t products = p.group_in() * taps_of(p);
  if (p.dtype != DType::bf16 || products < kManyProducts) return false;
  switch (bfloat16_of_library()) {
    case Bfloat16::in_tiles:
      return asked.channels_last || products >= kManyProductsOfTiles || saving_by_winograd(p) < kLargeSaving;
    case Bfloat16::twice_as_fast:
      return saving_by_winograd(p) < kLargeSaving;
    default:
      return false;
  }
}

}  // namespace film::FILM_ISA
