#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mm {

// CRC-32C (Castagnoli), as in RFC 3720 appendix B.4. With `seed` it goes on: crc32c(b, crc32c(a)) is that of a and b
// together. Uses the processor's instruction where there is one.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0);

// The same without the instruction; for processors that lack it, and as a check.
std::uint32_t crc32c_by_table(std::span<const std::byte> bytes, std::uint32_t seed = 0);

// Whether crc32c uses the processor's instruction.
[[nodiscard]] bool crc32c_in_hardware();

}  // namespace mm
