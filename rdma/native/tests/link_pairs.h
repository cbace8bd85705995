#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "shm/shm_link.h"
#include "tcp/tcp_link.h"
#include "tests/check.h"

// Pairs of joined links, within one process.
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

// An object of shared memory without a name.
inline int shared_memory(std::size_t bytes) {
  static std::atomic<int> number{0};
  const std::string name = "/mm" + std::to_string(::getpid()) + "." + std::to_string(number++);
  const int fd = ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  CHECK(fd >= 0);
  ::shm_unlink(name.c_str());
  CHECK(::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return fd;
}

struct Pair {
  std::unique_ptr<mm::Link> a;
  std::unique_ptr<mm::Link> b;
};

inline Pair tcp(const mm::LinkOptions& options = {}) {
  const Sockets sockets = tcp_sockets();
  return {mm::tcp_link(sockets.a, options), mm::tcp_link(sockets.b, options)};
}

inline Pair unix_stream(const mm::LinkOptions& options = {}) {
  const Sockets sockets = unix_sockets();
  return {mm::tcp_link(sockets.a, options), mm::tcp_link(sockets.b, options)};
}

// The smallest buffers that make sense, so that every queue is soon full.
inline Pair tiny_unix_stream() {
  const Sockets sockets = unix_sockets();
  const int bytes = 4096;
  for (const int fd : {sockets.a, sockets.b}) {
    CHECK(::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) == 0);
    CHECK(::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes) == 0);
  }
  return {mm::tcp_link(sockets.a, {}), mm::tcp_link(sockets.b, {})};
}

inline mm::LinkOptions tiny_options() {
  mm::LinkOptions options;
  options.num_buffers = 1;
  options.frame_bytes = 64;
  options.buffer_sizes = 3;
  options.max_outstanding = 2;
  return options;
}

inline Pair shm(const mm::LinkOptions& options = {}) {
  const int a_to_b = shared_memory(mm::shm_bytes(options));
  const int b_to_a = shared_memory(mm::shm_bytes(options));
  const Sockets a_rings = unix_sockets();
  const Sockets b_rings = unix_sockets();
  return {mm::shm_link({::dup(a_to_b), ::dup(b_to_a), a_rings.a, b_rings.b}, options),
          mm::shm_link({b_to_a, a_to_b, b_rings.a, a_rings.b}, options)};
}

inline Pair tiny_shm() { return shm(tiny_options()); }

struct Kind {
  const char* name;
  Pair (*make)();
};

inline const Kind kKinds[] = {
    {"tcp", [] { return tcp(); }},
    {"unix", [] { return unix_stream(); }},
    {"tiny unix", [] { return tiny_unix_stream(); }},
    {"shm", [] { return shm(); }},
    {"tiny shm", [] { return tiny_shm(); }},
};

}  // namespace pairs
