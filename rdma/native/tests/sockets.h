#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/check.h"

// Pairs of connected sockets.
namespace pairs {

struct Sockets {
  int a = -1;
  int b = -1;
};

inline Sockets unix_sockets() {
  int fds[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  return {fds[0], fds[1]};
}

inline Sockets tcp_sockets() {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  CHECK(::listen(listener, 1) == 0);
  socklen_t length = sizeof address;
  CHECK(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  Sockets sockets;
  sockets.a = ::socket(AF_INET, SOCK_STREAM, 0);
  CHECK(::connect(sockets.a, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  sockets.b = ::accept(listener, nullptr, nullptr);
  CHECK(sockets.b >= 0);
  ::close(listener);
  return sockets;
}

}  // namespace pairs
