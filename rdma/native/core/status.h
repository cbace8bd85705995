#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace mm {

// What went wrong on a link or in a group. The data path returns these; the binding turns them into Python errors. The
// numbers travel on the side sockets: never renumber.
enum class Code : std::uint8_t {
  kOk,
  kPeerLost,   // the peer closed, died, or said that it gives up
  kTimeout,    // the deadline passed in silence
  kMismatch,   // the peer sent something else than was expected
  kCorrupt,    // a frame that cannot be one: wrong magic, version or checksum, or torn
  kAborted,    // this side gave up, or had failed before
  kLocal,      // a fault of this side: closed, a wrong argument, out of descriptors or memory
};

// A code and what happened, where, and what was expected. Cheap where it is kOk.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string text) : code_(code), text_(std::move(text)) {}

  [[nodiscard]] bool ok() const { return code_ == Code::kOk; }
  [[nodiscard]] Code code() const { return code_; }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  Code code_ = Code::kOk;
  std::string text_;
};

}  // namespace mm
