#include "core/parcel.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace mm {
namespace {

constexpr std::size_t kHeadBytes = 4;
constexpr std::size_t kFactsBytes = 4;  // and the dimensions
constexpr std::size_t kMostDimensions = 32;
constexpr std::size_t kMostTextArrays = 8;

void put(std::vector<std::byte>& out, std::uint32_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i)));
}

std::uint32_t get(std::span<const std::byte> in, std::size_t at, std::size_t bytes) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i) value |= std::to_integer<std::uint32_t>(in[at + i]) << (8 * i);
  return value;
}

Status no_label(const std::string& text) { return {Code::kMismatch, "not the label of a parcel: " + text}; }

}  // namespace

std::optional<std::size_t> ArrayFacts::bytes() const {
  std::size_t bytes = size_of(dtype);
  if (bytes == 0 || dtype == Dtype::kBytes) return std::nullopt;
  // A dimension of 0 makes the array empty, whatever the others are.
  bool empty = false;
  for (std::int32_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    if (dimension == 0) empty = true;
  }
  if (empty) return 0;
  for (std::int32_t dimension : shape) {
    if (bytes > kMostParcelBytes / static_cast<std::size_t>(dimension)) return std::nullopt;
    bytes *= static_cast<std::size_t>(dimension);
  }
  return bytes;
}

std::string to_text(std::span<const ArrayFacts> arrays) {
  std::string text = "[";
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    if (i == kMostTextArrays) {
      text += ", ... " + std::to_string(arrays.size()) + " in all";
      break;
    }
    text += i == 0 ? "(" : ", (";
    const auto& shape = arrays[i].shape;
    for (std::size_t k = 0; k < shape.size(); ++k) text += (k == 0 ? "" : ", ") + std::to_string(shape[k]);
    text += shape.size() == 1 ? ",) " : ") ";
    text += name_of(arrays[i].dtype);
  }
  return text + "]";
}

Status write_label(std::span<const OutgoingArray> arrays, std::vector<std::byte>& out) {
  auto refuse = [](const std::string& text) { return Status(Code::kLocal, "these cannot be sent together: " + text); };
  if (arrays.size() > std::numeric_limits<std::uint16_t>::max()) {
    return refuse(std::to_string(arrays.size()) + " arrays are too many");
  }
  std::size_t total = 0;
  std::size_t label = kHeadBytes;
  for (const auto& array : arrays) {
    auto bytes = array.facts.bytes();
    if (!bytes || *bytes != array.bytes.size() || *bytes > kMostParcelBytes - total) {
      return refuse(to_text(std::span(&array.facts, 1)) + " is too large, or not " +
                    std::to_string(array.bytes.size()) + " bytes");
    }
    if (array.facts.shape.size() > kMostDimensions) return refuse("an array has too many dimensions");
    total += *bytes;
    label += kFactsBytes + 4 * array.facts.shape.size();
  }
  if (label > kMostLabelBytes - kInlineBytes) return refuse(std::to_string(arrays.size()) + " arrays are too many");
  const bool inlined = total <= kInlineBytes;
  out.clear();
  out.reserve(label + (inlined ? total : 0));
  put(out, static_cast<std::uint32_t>(arrays.size()), 2);
  put(out, inlined ? 1 : 0, 1);
  put(out, 0, 1);
  for (const auto& array : arrays) {
    put(out, static_cast<std::uint32_t>(array.facts.dtype), 1);
    put(out, static_cast<std::uint32_t>(array.facts.shape.size()), 1);
    put(out, 0, 2);
    for (std::int32_t dimension : array.facts.shape) put(out, static_cast<std::uint32_t>(dimension), 4);
  }
  if (inlined) {
    for (const auto& array : arrays) out.insert(out.end(), array.bytes.begin(), array.bytes.end());
  }
  return {};
}

Status read_label(std::span<const std::byte> in, Label& out) {
  if (in.size() < kHeadBytes) return no_label(std::to_string(in.size()) + " bytes");
  Label label;
  const std::size_t count = get(in, 0, 2);
  const std::uint32_t inlined = get(in, 2, 1);
  if (inlined > 1 || get(in, 3, 1) != 0) return no_label("unknown flags");
  label.inlined = inlined == 1;
  std::size_t at = kHeadBytes;
  std::size_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (in.size() - at < kFactsBytes) return no_label("it ends within the facts of an array");
    ArrayFacts facts;
    facts.dtype = static_cast<Dtype>(get(in, at, 1));
    const std::size_t dimensions = get(in, at + 1, 1);
    if (get(in, at + 2, 2) != 0 || dimensions > kMostDimensions) return no_label("impossible facts of an array");
    at += kFactsBytes;
    if (in.size() - at < 4 * dimensions) return no_label("it ends within a shape");
    for (std::size_t k = 0; k < dimensions; ++k) {
      facts.shape.push_back(static_cast<std::int32_t>(get(in, at + 4 * k, 4)));
    }
    at += 4 * dimensions;
    const auto bytes = facts.bytes();
    if (!bytes || *bytes > kMostParcelBytes - total) {
      return no_label("an array cannot be " + to_text(std::span(&facts, 1)));
    }
    total += *bytes;
    label.sizes.push_back(*bytes);
    label.arrays.push_back(std::move(facts));
  }
  const std::size_t left = in.size() - at;
  if (left != (label.inlined ? total : 0)) {
    return no_label(std::to_string(left) + " bytes follow the facts of " + to_text(label.arrays));
  }
  label.bytes = in.subspan(at);
  out = std::move(label);
  return {};
}

}  // namespace mm
