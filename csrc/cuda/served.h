// What conv_film's CUDA kernels take for granted beside what every library checks.
#pragma once

#include "../checks.h"

namespace film {

constexpr int64_t kMostDirectChannels = 16;

// `matrix` is the family of kernels (kernels.h).
inline void check_served(const Problem& p, bool matrix) {
  // Sizes of one axis are counted in 32 bits there, and so are blocks of many positions and products.
  constexpr int64_t kMostOfAxis = int64_t(1) << 30, kMost = int64_t(1) << 37;
  STD_TORCH_CHECK(p.dtype != DType::f64, "film_kernels: input must be of dtype float32, bfloat16 or float16");
  STD_TORCH_CHECK(p.groups == 1, "film_kernels: geometry: groups must be 1, got ", p.groups);
  for (const Axis& a : {p.h, p.w})
    STD_TORCH_CHECK(a.in <= kMostOfAxis && a.pad <= kMostOfAxis && is_within(kMostOfAxis, {a.out, a.stride}) &&
                        is_within(kMostOfAxis, {a.kernel, a.dilation}),
                    "film_kernels: geometry: an axis is too large");
  STD_TORCH_CHECK(p.batch <= kMostOfAxis && is_within(kMostOfAxis, {p.in_channels, p.h.kernel, p.w.kernel}) &&
                      is_within(kMost, {p.batch, p.in_channels, p.h.in, p.w.in}) &&
                      is_within(kMost, {p.batch, p.out_channels, p.h.out, p.w.out}) &&
                      is_within(kMost, {p.out_channels, p.in_channels, p.h.kernel, p.w.kernel}),
                  "film_kernels: input or weight is too large");
  const int64_t packet = p.dtype == DType::f32 ? 4 : 8;  // channels in kPacketBytes
  STD_TORCH_CHECK(!matrix || (p.in_channels % packet == 0 && p.out_channels % packet == 0),
                  "film_kernels: input and weight must have multiples of ", packet, " channels, got ", p.in_channels,
                  " and ", p.out_channels);
  STD_TORCH_CHECK(matrix || p.in_channels <= kMostDirectChannels, "film_kernels: input must have at most ",
                  kMostDirectChannels, " channels, got ", p.in_channels);
}

}  // namespace film
