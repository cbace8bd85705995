#include "core/half.h"

#include <bit>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mm {

float half_to_float(std::uint16_t half) {
  std::uint32_t sign = (half & 0x8000u) << 16u;
  std::uint32_t exponent = (half >> 10u) & 0x1Fu;
  std::uint32_t fraction = half & 0x3FFu;
  if (exponent == 31) {  // infinity, or a NaN, which is made quiet as the instruction does
    return std::bit_cast<float>(sign | 0x7F800000u | (fraction << 13u) | (fraction != 0 ? 0x00400000u : 0u));
  }
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23u) | (fraction << 13u));
  // Zero or subnormal: fraction * 2^-24, which float holds exactly.
  float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

std::uint16_t float_to_half(float value) {
  std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  auto sign = static_cast<std::uint16_t>((bits >> 16u) & 0x8000u);
  std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) {
    return static_cast<std::uint16_t>(sign | 0x7E00u | ((magnitude >> 13u) & 0x1FFu));
  }
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 lets the float unit round to a multiple of 2^-24, which is in the low bits of the sum.
    float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u));
  }
  std::uint32_t odd = (magnitude >> 13u) & 1u;
  std::uint32_t rounded = magnitude - 0x38000000u + 0xFFFu + odd;
  return static_cast<std::uint16_t>(sign | (rounded >> 13u));
}

namespace {

void from_half_portable(const std::uint16_t* in, float* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = half_to_float(in[i]);
}

void to_half_portable(const float* in, std::uint16_t* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = float_to_half(in[i]);
}

#if defined(__x86_64__)

__attribute__((target("avx,f16c"))) void from_half_f16c(const std::uint16_t* in, float* out, std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  from_half_portable(in + i, out + i, count - i);
}

__attribute__((target("avx,f16c"))) void to_half_f16c(const float* in, std::uint16_t* out, std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  to_half_portable(in + i, out + i, count - i);
}

bool has_f16c() {
  static const bool has = __builtin_cpu_supports("f16c") != 0 && __builtin_cpu_supports("avx") != 0;
  return has;
}

#endif

}  // namespace

void from_half(const std::uint16_t* in, float* out, std::size_t count) {
#if defined(__aarch64__)
  const auto* halves = reinterpret_cast<const __fp16*>(in);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(halves[i]);
#else
#if defined(__x86_64__)
  if (has_f16c()) return from_half_f16c(in, out, count);
#endif
  from_half_portable(in, out, count);
#endif
}

void to_half(const float* in, std::uint16_t* out, std::size_t count) {
#if defined(__aarch64__)
  auto* halves = reinterpret_cast<__fp16*>(out);
  for (std::size_t i = 0; i < count; ++i) halves[i] = static_cast<__fp16>(in[i]);
#else
#if defined(__x86_64__)
  if (has_f16c()) return to_half_f16c(in, out, count);
#endif
  to_half_portable(in, out, count);
#endif
}

void from_bfloat(const std::uint16_t* in, float* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(in[i]) << 16u);
  }
}

void to_bfloat(const float* in, std::uint16_t* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits = std::bit_cast<std::uint32_t>(in[i]);
    std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16u) & 1u)) >> 16u;
    std::uint32_t quiet = (bits >> 16u) | 0x40u;
    out[i] = static_cast<std::uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
  }
}

}  // namespace mm
