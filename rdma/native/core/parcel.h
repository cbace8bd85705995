#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace mm {

// Several arrays that travel as one thing and say themselves what they are.
//
// A parcel begins with its label, a message of its own: what each array is, and where all of them are small together,
// their bytes, one after the other. Otherwise each array that has bytes follows as a message of its own, in order.
//
// A label is, little-endian: two bytes of the number of arrays, a byte (1: the bytes are in it), a zero byte; then for
// each array a byte of dtype (see core/dtype.h), a byte of the number of dimensions, two zero bytes and four bytes for
// each dimension; then the arrays' bytes, if they are in it.

inline constexpr std::size_t kInlineBytes = 32 * 1024;  // up to here a copy is cheaper than another message
inline constexpr std::size_t kMostLabelBytes = 64 * 1024;
inline constexpr std::size_t kMostParcelBytes = std::size_t{4} << 30;  // of the arrays

struct ArrayFacts {
  Dtype dtype = Dtype::kBytes;
  std::vector<std::int32_t> shape;

  // None where a dimension is negative, the type has no elements, or the bytes pass kMostParcelBytes.
  [[nodiscard]] std::optional<std::size_t> bytes() const;
  friend bool operator==(const ArrayFacts&, const ArrayFacts&) = default;
};

// "[(1, 3, 64) bfloat16, (2,) uint32]", for messages to people; long lists are cut.
[[nodiscard]] std::string to_text(std::span<const ArrayFacts> arrays);

struct OutgoingArray {
  ArrayFacts facts;
  std::span<const std::byte> bytes;
};

// kLocal where the arrays cannot be one parcel: too many, too large, or bytes that do not fit the facts.
[[nodiscard]] Status write_label(std::span<const OutgoingArray> arrays, std::vector<std::byte>& out);

struct Label {
  std::vector<ArrayFacts> arrays;
  std::vector<std::size_t> sizes;  // bytes of each
  bool inlined = false;
  std::span<const std::byte> bytes;  // of all arrays, where `inlined`; within what was read
};

// Reads what a peer sent: any bytes may come. kMismatch where they are no label.
[[nodiscard]] Status read_label(std::span<const std::byte> in, Label& out);

}  // namespace mm
