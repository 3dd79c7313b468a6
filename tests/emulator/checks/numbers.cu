// Conversions of 16-bit floats and of tf32. What they must give is known by the test that reads this program's output.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>

#include "check.h"

using namespace film::check;

// Reads float32 numbers, writes for each its bits as f16, as bf16 and as tf32.
CHECK(convert) {
  float value;
  while (std::fread(&value, 4, 1, stdin) == 1) {
    const uint32_t bits[3] = {__half_as_ushort(__float2half_rn(value)),
                              __bfloat16_as_ushort(__float2bfloat16_rn(value)), film::ptx::to_tf32(value)};
    std::fwrite(bits, 4, 3, stdout);
  }
}

CHECK(widen) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const __half half = __ushort_as_half(static_cast<uint16_t>(bits));
    const float wide = __half2float(half);
    const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float expected = std::ldexp(static_cast<float>(exponent == 0 ? mantissa : mantissa | 1024),
                                      static_cast<int>(exponent == 0 ? 1 : exponent) - 25);
    const bool finite = exponent != 31;
    expect(finite          ? std::fabs(wide) == expected
           : mantissa == 0 ? std::isinf(wide)
                           : std::isnan(wide),
           "half %04x: %g", bits, wide);
    expect(std::signbit(wide) == (bits >= 0x8000), "half %04x: sign", bits);
    expect(wide != wide || __half_as_ushort(__float2half_rn(wide)) == bits, "half %04x and back", bits);
    const float b = __bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(bits)));
    expect(__float_as_uint(b) == bits << 16, "bfloat16 %04x: %g", bits, b);
  }
}

CHECK(extremes) {
  const float nan = NAN;
  expect(min(1, 2u) == 1 && max(int64_t{5}, 3) == 5 && min(2.f, 1.) == 1, "mixed types");
  expect(max(nan, 1.f) == 1 && max(1.f, nan) == 1 && min(nan, 1.f) == 1 && min(1.f, nan) == 1, "NaN and a number");
  expect(std::isnan(max(nan, nan)), "NaN and NaN");
}
