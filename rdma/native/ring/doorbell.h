#pragma once

#include <sys/socket.h>

#include <cerrno>
#include <cstdint>

namespace mm::spsc {

// One end of a connected Unix stream socket, owned by somebody else. A byte says "look at the rings": something came,
// or there is space again. Its end says that the other process has closed it, or is dead.
class Doorbell {
 public:
  explicit Doorbell(int descriptor) : descriptor_(descriptor) {
#ifdef SO_NOSIGPIPE
    int on = 1;
    ::setsockopt(descriptor_, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
  }

  // Never blocks. A full socket has bytes enough to wake the other side; a broken one tells its owner by its end.
  void ring() {
#ifdef MSG_NOSIGNAL
    constexpr int kFlags = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
    constexpr int kFlags = MSG_DONTWAIT;
#endif
    const char byte = 0;
    while (::send(descriptor_, &byte, 1, kFlags) < 0 && errno == EINTR) {
    }
    ++rung_;
  }

  [[nodiscard]] std::uint64_t rung() const { return rung_; }

 private:
  int descriptor_;
  std::uint64_t rung_ = 0;
};

}  // namespace mm::spsc
