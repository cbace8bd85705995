// Links over the fake verbs library: other processes, cables that are pulled, limits that are reached.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "core/blocking.h"
#include "tests/check.h"
#include "tests/fake_fabric.h"
#include "tests/sockets.h"
#include "verbs/verbs_link.h"

using namespace mm;
using namespace mm::verbs;
using fake_fabric::Fabric;

namespace {

std::unique_ptr<VerbsLink> one_end(Fabric& fabric, const std::vector<std::string>& devices, int control, Status& why,
                                   const LinkSettings& settings = {}) {
  std::vector<Cable> cables;
  for (const std::string& name : devices) cables.push_back({fabric.open(name), name});
  return verbs_link(control, std::move(cables), {}, settings, Deadline::after(20), why);
}

struct Pair {
  std::unique_ptr<VerbsLink> a;
  std::unique_ptr<VerbsLink> b;
  Status why_a;
  Status why_b;
};

Pair both(Fabric& fabric, std::size_t cables, const LinkSettings& settings = {}) {
  std::vector<std::string> at_a;
  std::vector<std::string> at_b;
  for (std::size_t i = 0; i < cables; ++i) {
    at_a.push_back("a_fake" + std::to_string(i));
    at_b.push_back("b_fake" + std::to_string(i));
  }
  const pairs::Sockets control = pairs::tcp_sockets();
  Pair pair;
  std::thread other([&] { pair.b = one_end(fabric, at_b, control.b, pair.why_b, settings); });
  pair.a = one_end(fabric, at_a, control.a, pair.why_a, settings);
  other.join();
  return pair;
}

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> data(bytes);
  fill_echo_pattern(bytes, data);
  return data;
}

Status send(Link& link, std::size_t bytes) {
  return send_message(link.sender(), {}, pattern(bytes), Deadline::after(30), 5.0);
}

Status receive(Link& link, std::size_t bytes) {
  std::vector<std::byte> into(bytes);
  Status status = receive_message(link.receiver(), into, Deadline::after(30), 5.0);
  if (status.ok()) CHECK(into == pattern(bytes));
  return status;
}

void must(const Status& status) { CHECK_TEXT(status.ok(), status.text()); }

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void there_and_back(Pair& pair, int count) {
  std::thread other([&] {
    for (int i = 0; i < count; ++i) {
      must(receive(*pair.b, static_cast<std::size_t>(i) * 9973));
      must(send(*pair.b, 6144));
    }
  });
  for (int i = 0; i < count; ++i) {
    must(send(*pair.a, static_cast<std::size_t>(i) * 9973));
    must(receive(*pair.a, 6144));
  }
  other.join();
}

}  // namespace

TEST(a_link_on_devices_like_apples_has_one_region_and_its_share_of_queue_pairs) {
  Fabric fabric(fake_fabric::kOneCable);
  {
    Pair pair = both(fabric, 1);
    CHECK_TEXT(pair.a && pair.b, pair.why_a.text() + pair.why_b.text());
    CHECK(pair.a->mode() == Mode::kUC && pair.a->fit().whole_buffers && pair.a->fit().classes.size() == 5);
    CHECK(fabric.counter("regions") == 2 && fabric.counter("queue_pairs") == 10);
    there_and_back(pair, 30);
    // A second link to the same peer takes the other half; a third finds nothing.
    Pair second = both(fabric, 1);
    CHECK_TEXT(second.a && second.b, second.why_a.text() + second.why_b.text());
    there_and_back(second, 5);
    const Pair third = both(fabric, 1);
    CHECK(!third.a && !third.b);
    CHECK_TEXT(has(third.why_a.text(), "queue pair"), third.why_a.text());
    there_and_back(pair, 5);
  }
  CHECK(fabric.counter("regions") == 0 && fabric.counter("queue_pairs") == 0);
  CHECK(fabric.counter("cable0.end0.no_receive") == 0 && fabric.counter("cable0.end1.no_receive") == 0);
  CHECK(fabric.counter("cable0.end0.length_errors") == 0);
}

TEST(reliable_queue_pairs_where_devices_have_them) {
  Fabric fabric(std::string("flavour=linux;") + fake_fabric::kOneCable);
  Pair pair = both(fabric, 1);
  CHECK_TEXT(pair.a && pair.b, pair.why_a.text() + pair.why_b.text());
  CHECK(pair.a->mode() == Mode::kRC && pair.a->fit().classes.size() == 7);
  there_and_back(pair, 30);
}

TEST(faults_of_all_kinds_are_survived) {
  for (const char* faults : {"set loss=0.03", "set torn=0.02", "set jitter_ns=200000"}) {
    Fabric fabric(fake_fabric::kOneCable);
    LinkSettings settings;
    settings.max_attempts = 100;
    Pair pair = both(fabric, 1, settings);
    CHECK_TEXT(pair.a && pair.b, pair.why_a.text() + pair.why_b.text());
    fabric.command(faults);
    there_and_back(pair, 40);
  }
}

TEST(a_pulled_cable_ends_the_link_or_leaves_it_the_other) {
  for (const std::size_t cables : {1U, 2U}) {
    Fabric fabric("cables=a.fake0-b.fake0,a.fake1-b.fake1");
    LinkSettings settings;
    settings.retransmit_ms = 2;
    Pair pair = both(fabric, cables, settings);
    CHECK_TEXT(pair.a && pair.b, pair.why_a.text() + pair.why_b.text());
    there_and_back(pair, 10);
    fabric.command("cut 0");
    if (cables == 2) {
      there_and_back(pair, 20);
      CHECK(pair.a->counts().cables == 1);
      continue;
    }
    std::thread other([&] {
      const Status status = receive(*pair.b, 100000);
      CHECK_TEXT(status.code() == Code::kPeerLost, status.text());
    });
    Status status;
    for (int i = 0; i < 100000 && status.ok(); ++i) status = send(*pair.a, 100000);
    CHECK_TEXT(status.code() == Code::kPeerLost && has(status.text(), "cable"), status.text());
    other.join();
  }
}

TEST(a_peer_that_is_killed_is_lost_at_once) {
  for (const char* flavour : {"", "flavour=linux;"}) {
    Fabric fabric(std::string(flavour) + fake_fabric::kOneCable);
    const pairs::Sockets control = pairs::tcp_sockets();
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) {
      ::close(control.a);
      Status why;
      const auto link = one_end(fabric, {"b_fake0"}, control.b, why);
      if (!link || !send(*link, 100).ok()) ::_exit(3);
      for (;;) {
        if (!receive(*link, 100000).ok()) ::_exit(4);
      }
    }
    ::close(control.b);
    Status why;
    auto link = one_end(fabric, {"a_fake0"}, control.a, why);
    CHECK_TEXT(link, why.text());
    must(receive(*link, 100));
    for (int i = 0; i < 5; ++i) must(send(*link, 100000));
    CHECK(::kill(child, SIGKILL) == 0);
    const auto killed = Clock::now();
    const Status status = receive(*link, 100);
    CHECK_TEXT(status.code() == Code::kPeerLost, status.text());
    CHECK(Clock::now() - killed < std::chrono::seconds(20));
    Status sent;
    for (int i = 0; i < 1000 && sent.ok(); ++i) sent = send(*link, 100000);
    CHECK_TEXT(sent.code() == Code::kPeerLost, sent.text());
    int ended = 0;
    CHECK(::waitpid(child, &ended, 0) == child && WIFSIGNALED(ended));
    link.reset();
  }
}

TEST(limits_that_are_too_small_say_so_at_both_ends) {
  for (const char* limits : {"queue_pairs=1", "requests=1", "region_bytes=100000"}) {
    Fabric fabric(std::string(limits) + ";" + fake_fabric::kOneCable);
    const Pair pair = both(fabric, 1);
    CHECK(!pair.a && !pair.b);
    CHECK_TEXT(has(pair.why_a.text(), "no verbs link fits"), pair.why_a.text());
    CHECK_TEXT(has(pair.why_b.text(), "no verbs link fits"), pair.why_b.text());
  }
  // No region is left: others have them all.
  Fabric fabric(std::string("regions=1;") + fake_fabric::kOneCable);
  Pair pair = both(fabric, 1);
  CHECK_TEXT(pair.a && pair.b, pair.why_a.text() + pair.why_b.text());
  const Pair second = both(fabric, 1);
  CHECK(!second.a && !second.b);
  there_and_back(pair, 5);
}

CHECK_MAIN
