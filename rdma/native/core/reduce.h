#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/dtype.h"

namespace mm {

enum class Reduction : std::uint8_t { kSum, kMax, kMin };

// Reduces element by element in the order of `inputs`, so that every rank gets the same bits. `out` may be one of the
// inputs. Sums of float16 and bfloat16 are taken in float32 and rounded once; bool sums are "or"; maxima and minima
// carry NaN along; complex64 is ordered by its real, then its imaginary part, as NumPy does.
void reduce(Reduction reduction, Dtype dtype, const std::vector<std::span<const std::byte>>& inputs,
            std::span<std::byte> out);

}  // namespace mm
