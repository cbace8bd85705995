#pragma once

#include <string>
#include <utility>

namespace mm {

// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] int get() const { return fd_; }
  void reset();
  // Gives it away.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

// Makes a connected stream socket ready for a link: non-blocking, closed on exec, without SIGPIPE, and without Nagle's
// delay where it is TCP. Throws std::system_error that begins with `what` where it is no such socket.
void prepare_socket(int fd, const std::string& what);

// Flags for send() that keep a closed peer from raising SIGPIPE.
[[nodiscard]] int send_flags();

// Whether errno's value says that the other side is gone.
[[nodiscard]] bool says_peer_lost(int error);

// "Connection reset by peer (errno 104)".
[[nodiscard]] std::string error_text(int error);

}  // namespace mm
