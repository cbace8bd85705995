#include "fakeverbs/waiter.h"

#include <cerrno>
#include <system_error>

#if defined(__linux__)
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#endif

namespace mm::fakeverbs {

#if defined(__linux__)
namespace {

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), std::string("fake verbs: ") + what);
}

// An abstract name: it goes away with the socket, even where the process was killed.
socklen_t name_of(sockaddr_un& address, const std::string& segment, std::uint32_t channel) {
  std::memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  const int length = std::snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "macmesh-fakeverbs.%s.%u",
                                   segment.c_str(), channel);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<std::size_t>(length));
}

void watch(int all, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(all, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
}

}  // namespace

Waiter::Waiter(const std::string& segment, std::uint32_t channel) {
  try {
    all_ = ::epoll_create1(EPOLL_CLOEXEC);
    if (all_ < 0) fail("epoll_create1");
    timer_ = ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (timer_ < 0) fail("timerfd_create");
    knocks_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (knocks_ < 0) fail("socket");
    sockaddr_un address;
    const socklen_t length = name_of(address, segment, channel);
    if (::bind(knocks_, reinterpret_cast<sockaddr*>(&address), length) != 0) fail("bind");
    watch(all_, timer_);
    watch(all_, knocks_);
  } catch (...) {
    for (const int fd : {knocks_, timer_, all_}) {
      if (fd >= 0) ::close(fd);
    }
    throw;
  }
}

Waiter::~Waiter() {
  for (const int fd : {knocks_, timer_, all_}) ::close(fd);
}

void Waiter::set_timer(std::uint64_t machine_ns) {
  itimerspec spec{};
  spec.it_value.tv_sec = static_cast<time_t>(machine_ns / 1'000'000'000);
  spec.it_value.tv_nsec = static_cast<long>(machine_ns % 1'000'000'000);
  ::timerfd_settime(timer_, TFD_TIMER_ABSTIME, &spec, nullptr);
}

void Waiter::clear() {
  char ignored[64];
  while (::recv(knocks_, ignored, sizeof ignored, 0) >= 0) {
  }
  std::uint64_t times = 0;
  [[maybe_unused]] const auto count = ::read(timer_, &times, sizeof times);
}

void knock(const std::string& segment, std::uint32_t channel) {
  static const int from = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  sockaddr_un address;
  const socklen_t length = name_of(address, segment, channel);
  // A full queue is readable already; one that is gone waits for nothing.
  [[maybe_unused]] const auto sent =
      ::sendto(from, "", 1, MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&address), length);
}

#else

Waiter::Waiter(const std::string&, std::uint32_t) {
  throw std::system_error(ENOTSUP, std::generic_category(), "fake verbs: completion channels");
}
Waiter::~Waiter() = default;
void Waiter::set_timer(std::uint64_t) {}
void Waiter::clear() {}
void knock(const std::string&, std::uint32_t) {}

#endif

}  // namespace mm::fakeverbs
