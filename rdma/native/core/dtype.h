#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mm {

// Element types, with the numbers that travel in frames. Never renumber.
enum class Dtype : std::uint8_t {
  kBytes = 0,  // no elements: bytes for their own sake
  kBool = 1,
  kUint8 = 2,
  kUint16 = 3,
  kUint32 = 4,
  kUint64 = 5,
  kInt8 = 6,
  kInt16 = 7,
  kInt32 = 8,
  kInt64 = 9,
  kFloat16 = 10,
  kFloat32 = 11,
  kFloat64 = 12,
  kBfloat16 = 13,
  kComplex64 = 14,
};

[[nodiscard]] constexpr std::size_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBytes:
    case Dtype::kBool:
    case Dtype::kUint8:
    case Dtype::kInt8:
      return 1;
    case Dtype::kUint16:
    case Dtype::kInt16:
    case Dtype::kFloat16:
    case Dtype::kBfloat16:
      return 2;
    case Dtype::kUint32:
    case Dtype::kInt32:
    case Dtype::kFloat32:
      return 4;
    case Dtype::kUint64:
    case Dtype::kInt64:
    case Dtype::kFloat64:
    case Dtype::kComplex64:
      return 8;
  }
  return 0;
}

// The name as MLX prints it, "bfloat16"; "unknown" for a number that is none of these.
[[nodiscard]] constexpr std::string_view name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBytes: return "bytes";
    case Dtype::kBool: return "bool";
    case Dtype::kUint8: return "uint8";
    case Dtype::kUint16: return "uint16";
    case Dtype::kUint32: return "uint32";
    case Dtype::kUint64: return "uint64";
    case Dtype::kInt8: return "int8";
    case Dtype::kInt16: return "int16";
    case Dtype::kInt32: return "int32";
    case Dtype::kInt64: return "int64";
    case Dtype::kFloat16: return "float16";
    case Dtype::kFloat32: return "float32";
    case Dtype::kFloat64: return "float64";
    case Dtype::kBfloat16: return "bfloat16";
    case Dtype::kComplex64: return "complex64";
  }
  return "unknown";
}

}  // namespace mm
