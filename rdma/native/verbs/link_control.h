#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/deadline.h"
#include "core/descriptor.h"
#include "core/status.h"

namespace mm::verbs {

// What travels on a link's control socket: a length of 32 bits, then the kind, then its bytes. Never renumber.
enum class ControlKind : std::uint8_t {
  kHello = 1,
  kQueues = 2,
  kAddresses = 3,
  kReady = 4,
  kEchoed = 5,     // all echoes of the other side came
  kReport = 6,     // see Report
  kProbe = 7,      // a number; the answer is a report that names it
  kWake = 8,       // something is on its way to a user that sleeps
  kAlive = 9,
  kCableDown = 10, // its index and why
  kEnd = 11,       // a code (see Code) and why
};

struct ControlMessage {
  ControlKind kind = ControlKind::kAlive;
  std::string bytes;
  [[nodiscard]] std::span<const std::byte> view() const { return std::as_bytes(std::span(bytes)); }
};

// A connected stream socket with messages. Not thread-safe. Sending never blocks: what the socket does not take waits.
class ControlSocket {
 public:
  static constexpr std::size_t kMostMessageBytes = 64 * 1024;
  static constexpr std::size_t kMostWaitingBytes = 1024 * 1024;

  // Throws std::system_error where it is no connected stream socket.
  explicit ControlSocket(Descriptor socket);

  void send(ControlKind kind, std::string_view bytes = {});
  // Writes what waits.
  void flush();
  [[nodiscard]] bool waits() const { return !out_.empty(); }
  // Reads what is there. False once the socket has ended or was spoilt: see failure(); what came before is still given.
  bool read();
  // The next message that was read.
  bool next(ControlMessage& message);
  [[nodiscard]] const Status& failure() const { return failure_; }
  [[nodiscard]] int descriptor() const { return socket_.get(); }
  void shutdown();

  // For the start: sends all that waits, and waits for a message.
  Status send_all(Deadline deadline);
  Status receive(ControlMessage& message, Deadline deadline);

 private:
  Descriptor socket_;
  std::string out_;
  std::string in_;
  Status failure_;
};

}  // namespace mm::verbs
