// What a processor is known for beyond its instructions.
#pragma once

namespace film {

// Whether it multiplies pairs of bfloat16 (AVX512_BF16) in the time of one product of float32, as AMD's cores do. Those
// of Intel have fewer units for it, and take twice as long.
inline bool multiplies_pairs_fast() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

// Whether it has AVX-512 and multiplies one vector of it in a cycle, as AMD's cores do, where most of Intel's multiply
// two.
inline bool multiplies_one_vector() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace film
