#include "shm/doorbell.h"

#include <sys/socket.h>

#include <cerrno>

namespace mm::shm {

void Doorbell::ring() {
  const char byte = 1;
  // A full socket already holds bytes that wake the other side.
  if (::send(socket_.get(), &byte, 1, send_flags()) < 0 && says_peer_lost(errno)) ended_ = true;
}

void Doorbell::drain() {
  char bytes[64];
  for (;;) {
    const ssize_t came = ::recv(socket_.get(), bytes, sizeof bytes, 0);
    if (came == 0 || (came < 0 && says_peer_lost(errno))) ended_ = true;
    if (came < static_cast<ssize_t>(sizeof bytes)) return;
  }
}

void Doorbell::shutdown() { ::shutdown(socket_.get(), SHUT_RDWR); }

}  // namespace mm::shm
