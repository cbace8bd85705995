#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "core/little_endian.h"

namespace mm::verbs {

// Little-endian numbers and short texts, as they travel.

class ByteWriter {
 public:
  template <typename T>
  ByteWriter& number(T value) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    put_number(reinterpret_cast<std::byte*>(bytes_.data() + at), value);
    return *this;
  }
  // At most 65535 bytes of it.
  ByteWriter& text(std::string_view value) {
    value = value.substr(0, 65535);
    number(static_cast<std::uint16_t>(value.size()));
    bytes_.append(value);
    return *this;
  }
  ByteWriter& raw(std::span<const std::byte> value) {
    bytes_.append(reinterpret_cast<const char*>(value.data()), value.size());
    return *this;
  }
  [[nodiscard]] const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Reads what a peer wrote: past the end everything is zero and ok() is false for ever.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <typename T>
  T number() {
    if (!has(sizeof(T))) return 0;
    const T value = get_number<T>(bytes_.data() + at_);
    at_ += sizeof(T);
    return value;
  }
  std::string text() {
    const std::size_t length = number<std::uint16_t>();
    if (!has(length)) return {};
    std::string value(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    at_ += length;
    return value;
  }
  void raw(std::span<std::byte> into) {
    if (!has(into.size())) return;
    std::memcpy(into.data(), bytes_.data() + at_, into.size());
    at_ += into.size();
  }
  [[nodiscard]] bool ok() const { return ok_; }
  // Nothing was missing and nothing is left.
  [[nodiscard]] bool complete() const { return ok_ && at_ == bytes_.size(); }

 private:
  bool has(std::size_t count) {
    if (count > bytes_.size() - at_) ok_ = false;
    return ok_;
  }

  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace mm::verbs
