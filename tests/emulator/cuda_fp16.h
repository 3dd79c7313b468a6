// __half: its bits, and conversions that round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  __half(float value);
  operator float() const;
};

struct alignas(4) __half2 {
  __half x, y;
};

using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half v) { return v.bits; }

inline __half __ushort_as_half(unsigned short bits) {
  __half v;
  v.bits = bits;
  return v;
}

// Moved to float's place, exponent and mantissa are the value times 2^-112; exact, subnormals included.
inline float __half2float(__half v) {
  const uint32_t magnitude = v.bits & 0x7fffu, sign = (v.bits & 0x8000u) << 16;
  uint32_t bits = magnitude << 13;
  float f;
  std::memcpy(&f, &bits, 4);
  f *= 0x1p112f;
  std::memcpy(&bits, &f, 4);
  if (magnitude >= 0x7c00u) bits = 0x7f800000u | magnitude << 13;  // infinity and NaN
  bits |= sign;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline __half __float2half_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    return __ushort_as_half(0x7fff);  // the card's one NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  } else {  // subnormal: adding 0.5 rounds at 2^-24 and leaves the result in the low bits
    float f;
    std::memcpy(&f, &magnitude, 4);
    f += 0.5f;
    std::memcpy(&half, &f, 4);
    half -= 0x3f000000u;
  }
  return __ushort_as_half(static_cast<uint16_t>(sign | half));
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

inline __half::__half(float value) : bits(__float2half_rn(value).bits) {}
inline __half::operator float() const { return __half2float(*this); }
