#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "shm/shm_link.h"
#include "tcp/tcp_link.h"
#include "tests/check.h"
#include "tests/fake_fabric.h"
#include "tests/sockets.h"
#include "tests/verbs_pairs.h"

// Pairs of joined links, within one process.
namespace pairs {

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

inline Pair verbs(const verbs_pairs::Wanted& wanted = {}) {
  auto joined = verbs_pairs::join(wanted);
  return {std::move(joined.a), std::move(joined.b)};
}

// Buffers so few that every queue is soon full.
inline mm::LinkOptions few_buffers() {
  mm::LinkOptions options;
  options.num_buffers = 1;
  options.frame_bytes = 4096;
  options.buffer_sizes = 3;
  options.max_outstanding = 2;
  return options;
}

inline Pair tiny_verbs() {
  verbs_pairs::Wanted wanted;
  wanted.options = few_buffers();
  return verbs(wanted);
}

// As on a Mac: no descriptors to wait on, requests as long as their buffers, few queue pairs; and every hundredth message
// is lost.
inline Pair lossy_verbs() {
  verbs_pairs::Wanted wanted;
  wanted.limits.frame_bytes = 4096;
  wanted.limits.max_queue_pairs = 10;
  wanted.faults.events = false;
  wanted.faults.loss = 0.01;
  return verbs(wanted);
}

// Two cables whose messages overtake each other.
inline Pair striped_verbs() {
  verbs_pairs::Wanted wanted;
  wanted.cables = 2;
  wanted.faults.late = 0.3;
  wanted.faults.loss = 0.001;
  wanted.settings.mode = mm::verbs::ModeChoice::kUC;
  return verbs(wanted);
}

// Over the fake verbs library, in which every link has its end of cable 0 at host a and at host b.
inline Pair fabric_verbs(double loss) {
  // Room for all links of a group; else as on a Mac.
  static fake_fabric::Fabric fabric(std::string(fake_fabric::kOneCable) + ";queue_pairs=400;regions=1000");
  fabric.command("set loss=" + std::to_string(loss));
  mm::verbs::LinkSettings settings;
  settings.links_per_device = 64;
  const auto device = [](const char* name) {
    mm::Status why;
    auto opened = mm::verbs::open_device(fabric.library(), name, {}, why);
    CHECK_TEXT(opened, why.text());
    std::vector<mm::verbs::Cable> cables;
    cables.push_back({std::move(opened), name});
    return cables;
  };
  const Sockets control = tcp_sockets();
  mm::Status why_a;
  mm::Status why_b;
  Pair pair;
  std::thread other([&] {
    pair.b = mm::verbs::verbs_link(control.b, device("b_fake0"), {}, settings, mm::Deadline::after(20), why_b);
  });
  pair.a = mm::verbs::verbs_link(control.a, device("a_fake0"), {}, settings, mm::Deadline::after(20), why_a);
  other.join();
  CHECK_TEXT(pair.a && pair.b, why_a.text() + " / " + why_b.text());
  return pair;
}

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
    {"verbs", [] { return verbs(); }},
    {"tiny verbs", [] { return tiny_verbs(); }},
    {"lossy verbs", [] { return lossy_verbs(); }},
    {"striped verbs", [] { return striped_verbs(); }},
    {"fabric verbs", [] { return fabric_verbs(0); }},
    {"fabric verbs, 1 of 10,000 lost", [] { return fabric_verbs(1e-4); }},
    {"fabric verbs, 1 of 100 lost", [] { return fabric_verbs(1e-2); }},
};

}  // namespace pairs
