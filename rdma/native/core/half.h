#pragma once

#include <cstddef>
#include <cstdint>

namespace mm {

// Conversions of 16-bit floats, many at a time, rounded to nearest even. NaN stays NaN.
void from_half(const std::uint16_t* in, float* out, std::size_t count);      // IEEE 754 binary16
void to_half(const float* in, std::uint16_t* out, std::size_t count);
void from_bfloat(const std::uint16_t* in, float* out, std::size_t count);
void to_bfloat(const float* in, std::uint16_t* out, std::size_t count);

// The same for one binary16 number in integer arithmetic: what is used where the processor has no instruction for it.
float half_to_float(std::uint16_t half);
std::uint16_t float_to_half(float value);

}  // namespace mm
