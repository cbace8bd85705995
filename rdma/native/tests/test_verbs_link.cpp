// The link's protocol over queue pairs within this process: what it refuses, what it survives, and how it ends.
#include <poll.h>

#include <ctime>
#include <random>
#include <thread>

#include "core/blocking.h"
#include "tests/check.h"
#include "tests/verbs_pairs.h"

using namespace mm;
using namespace mm::verbs;
using verbs_pairs::join;
using verbs_pairs::Joined;
using verbs_pairs::Wanted;

namespace {

std::vector<std::byte> pattern(std::size_t bytes, std::uint32_t seed) {
  std::vector<std::byte> data(bytes);
  fill_echo_pattern(seed, data);
  return data;
}

FrameHeader numbered(std::uint64_t sequence) {
  FrameHeader header;
  header.sequence = sequence;
  return header;
}

Status send(Link& link, std::uint64_t number, std::size_t bytes) {
  return send_message(link.sender(), numbered(number), pattern(bytes, static_cast<std::uint32_t>(number)),
                      Deadline::after(30), 5.0);
}

Status receive(Link& link, std::uint64_t number, std::size_t bytes) {
  std::vector<std::byte> into(bytes);
  Status status = receive_message(link.receiver(), into, Deadline::after(30), 5.0);
  if (status.ok()) CHECK(into == pattern(bytes, static_cast<std::uint32_t>(number)));
  return status;
}

std::size_t bytes_of(std::uint64_t number) {
  constexpr std::size_t kSizes[] = {0, 17, 6144, 8000, 65536, 300000};
  return kSizes[number % std::size(kSizes)];
}

// Messages of many sizes, both ways at once; each arrives once, whole, in order.
void exchange(Joined& pair, std::uint64_t count) {
  std::vector<std::thread> threads;
  for (Link* link : {static_cast<Link*>(pair.a.get()), static_cast<Link*>(pair.b.get())}) {
    threads.emplace_back([link, count] {
      for (std::uint64_t i = 0; i < count; ++i) {
        const Status status = send(*link, i, bytes_of(i));
        CHECK_TEXT(status.ok(), status.text());
      }
    });
    threads.emplace_back([link, count] {
      for (std::uint64_t i = 0; i < count; ++i) {
        const Status status = receive(*link, i, bytes_of(i));
        CHECK_TEXT(status.ok(), status.text());
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

Wanted unreliable() {
  Wanted wanted;
  wanted.settings.mode = ModeChoice::kUC;
  return wanted;
}

std::uint64_t total(const Joined& pair, std::uint64_t fake_verbs::Wire::*counter) {
  std::uint64_t sum = 0;
  for (const auto& wire : pair.wires) {
    const std::lock_guard lock(wire->mutex);
    sum += (*wire).*counter;
  }
  return sum;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(nothing_is_dropped_for_want_of_a_receive) {
  for (const std::uint32_t buffers : {1U, 2U, 8U}) {
    Wanted wanted = unreliable();
    wanted.options.num_buffers = buffers;
    Joined pair = join(wanted);
    exchange(pair, 60);
    CHECK(total(pair, &fake_verbs::Wire::unexpected) == 0);
    CHECK(pair.a->counts().lost == 0 && pair.b->counts().lost == 0);
    CHECK(pair.a->counts().broken == 0 && pair.b->counts().repeated == 0);
  }
}

TEST(losses_are_sent_again) {
  for (const double loss : {1e-4, 1e-2, 0.1}) {
    Wanted wanted = unreliable();
    wanted.faults.loss = loss;
    wanted.settings.retransmit_ms = 2;
    wanted.settings.max_attempts = 100;
    Joined pair = join(wanted);
    exchange(pair, 60);
    if (loss < 1e-2) continue;
    CHECK(pair.a->counts().retransmitted + pair.b->counts().retransmitted > 0);
    CHECK(pair.a->counts().cables == 1);
  }
}

TEST(what_is_altered_or_torn_is_never_delivered) {
  for (const bool torn : {false, true}) {
    Wanted wanted = unreliable();
    (torn ? wanted.faults.torn : wanted.faults.altered) = 0.05;
    wanted.settings.retransmit_ms = 2;
    wanted.settings.max_attempts = 100;
    Joined pair = join(wanted);
    exchange(pair, 60);
    CHECK(pair.a->counts().broken + pair.b->counts().broken > 0);
  }
}

TEST(a_lost_message_arrives_while_its_sender_computes) {
  Joined pair = join(unreliable());
  {
    const std::lock_guard lock(pair.wires[0]->mutex);
    pair.wires[0]->faults.loss = 1;
  }
  CHECK(send(*pair.a, 0, 6144).ok());
  {
    const std::lock_guard lock(pair.wires[0]->mutex);
    pair.wires[0]->faults.loss = 0;
  }
  // Nobody calls the sender again.
  CHECK(receive(*pair.b, 0, 6144).ok());
  CHECK(pair.a->counts().retransmitted >= 1);
}

TEST(a_lost_last_report_keeps_nobody_awake) {
  Wanted wanted = unreliable();
  wanted.faults.events = false;
  Joined pair = join(wanted);
  CHECK(send(*pair.a, 0, 100).ok());
  // What the receiver says when it has taken it is lost.
  {
    const std::lock_guard lock(pair.wires[0]->mutex);
    pair.wires[0]->faults.loss = 1;
  }
  CHECK(receive(*pair.b, 0, 100).ok());
  {
    const std::lock_guard lock(pair.wires[0]->mutex);
    pair.wires[0]->faults.loss = 0;
  }
  timespec before{};
  timespec after{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::byte into{};
  const Status status = receive_message(pair.a->receiver(), {&into, 1}, Deadline::after(0.3), 5.0);
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  CHECK(status.code() == Code::kTimeout);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      static_cast<double>(after.tv_nsec - before.tv_nsec) * 1e-9;
  CHECK_TEXT(used < 0.1, std::to_string(used) + " seconds");
}

TEST(a_link_that_closes_leaves_nothing_behind) {
  for (const double loss : {0.0, 0.2}) {
    Wanted wanted = unreliable();
    wanted.settings.retransmit_ms = 2;
    wanted.settings.linger_seconds = 20;
    wanted.settings.max_attempts = 100;
    Joined pair = join(wanted);
    {
      const std::lock_guard lock(pair.wires[0]->mutex);
      pair.wires[0]->faults.loss = loss;
    }
    for (std::uint64_t i = 0; i < 4; ++i) CHECK(send(*pair.a, i, 30000).ok());
    pair.a.reset();
    for (std::uint64_t i = 0; i < 4; ++i) CHECK(receive(*pair.b, i, 30000).ok());
    const Status status = receive(*pair.b, 4, 1);
    CHECK_TEXT(status.code() == Code::kPeerLost && has(status.text(), "closed"), status.text());
    pair.b.reset();
    const std::lock_guard lock(pair.wires[0]->mutex);
    CHECK(pair.wires[0]->queue_pairs.empty() && pair.wires[0]->region_count == 0);
  }
}

TEST(a_cable_that_is_pulled_ends_the_link_with_the_reason) {
  for (const ModeChoice mode : {ModeChoice::kUC, ModeChoice::kRC}) {
    Wanted wanted;
    wanted.settings.mode = mode;
    wanted.settings.retransmit_ms = 2;
    Joined pair = join(wanted);
    {
      const std::lock_guard lock(pair.wires[0]->mutex);
      pair.wires[0]->cut = true;
    }
    std::thread other([&] {
      const Status status = receive(*pair.b, 0, 100);
      CHECK_TEXT(status.code() == Code::kPeerLost, status.text());
    });
    Status status;
    for (int i = 0; i < 100000 && status.ok(); ++i) status = send(*pair.a, 0, 100);
    CHECK_TEXT(status.code() == Code::kPeerLost && has(status.text(), "cable"), status.text());
    other.join();
  }
}

TEST(a_cable_that_carries_nothing_is_given_up) {
  Wanted wanted = unreliable();
  wanted.settings.retransmit_ms = 1;
  Joined pair = join(wanted);
  {
    const std::lock_guard lock(pair.wires[0]->mutex);
    pair.wires[0]->blocked = true;  // its ports stay active
  }
  CHECK(send(*pair.a, 0, 100).ok());
  const Status status = receive(*pair.b, 0, 100);
  CHECK_TEXT(status.code() == Code::kPeerLost && has(status.text(), "carries nothing"), status.text());
}

TEST(one_of_two_cables_may_go) {
  for (const bool silent : {false, true}) {
    Wanted wanted = unreliable();
    wanted.cables = 2;
    wanted.settings.retransmit_ms = 1;
    Joined pair = join(wanted);
    CHECK(pair.a->counts().cables == 2);
    std::thread killer([&] {
      while (total(pair, &fake_verbs::Wire::messages) < 150) std::this_thread::yield();
      const std::lock_guard lock(pair.wires[1]->mutex);
      (silent ? pair.wires[1]->blocked : pair.wires[1]->cut) = true;
    });
    exchange(pair, 120);
    killer.join();
    exchange(pair, 6);
    CHECK(pair.a->counts().cables == 1 && pair.b->counts().cables == 1);
  }
}

TEST(several_cables_share_the_load) {
  Wanted wanted = unreliable();
  wanted.cables = 3;
  Joined pair = join(wanted);
  exchange(pair, 60);
  std::uint64_t messages[3];
  for (std::size_t i = 0; i < 3; ++i) {
    const std::lock_guard lock(pair.wires[i]->mutex);
    messages[i] = pair.wires[i]->messages;
  }
  for (const std::uint64_t of : messages) CHECK_TEXT(of > 50, std::to_string(of));
}

TEST(ends_that_do_not_fit_are_refused_at_both) {
  const auto refused = [](const Wanted& a, const Wanted& b, const std::string& reason) {
    Joined joined = join(a, b, 20);
    CHECK(!joined.a && !joined.b);
    for (const Status& why : {joined.why_a, joined.why_b}) {
      CHECK_TEXT(why.code() == Code::kMismatch && has(why.text(), reason), why.text());
    }
    CHECK(joined.wires[0]->queue_pairs.empty() && joined.wires[0]->region_count == 0);
  };
  Wanted a;
  Wanted b;
  a.settings.build = "25C56";
  b.settings.build = "25D12";
  refused(a, b, "25C56");
  refused(a, b, "25D12");
  b.settings.build = "";
  CHECK(join(a, b).a != nullptr);
  b.options.num_buffers = 4;
  refused(a, b, "other link options");
  b = {};
  a.settings.mode = ModeChoice::kRC;
  b.settings.mode = ModeChoice::kUC;
  refused(a, b, "one end wants unreliable");
  a = b = {};
  a.cables = 2;
  refused(a, b, "cables to the peer");
  a = b = {};
  a.limits.max_queue_pairs = 1;
  refused(a, b, "1 queue pairs");
}

TEST(the_mode_is_what_both_devices_can) {
  Wanted a;
  Wanted b;
  CHECK(join(a, b).a->mode() == Mode::kRC);
  b.limits.frame_bytes = 4096;
  const Joined joined = join(a, b);
  CHECK(joined.a->mode() == Mode::kUC && joined.b->mode() == Mode::kUC);
  CHECK(joined.a->fit().whole_buffers && joined.b->fit().whole_buffers);
}

TEST(a_device_that_refuses_queue_pairs_leaves_fewer_sizes) {
  Wanted wanted;
  wanted.faults.refuse_beyond = 3;
  Joined pair = join(wanted);
  CHECK(pair.a->fit().classes.size() == 3 && pair.b->fit().classes.size() == 3);
  CHECK(has(pair.a->fit().notes.back(), "errno 16") && has(pair.b->fit().notes.back(), "errno 16"));
  exchange(pair, 12);
  wanted.faults.refuse_beyond = 1;
  Joined one = join(wanted);
  CHECK(one.a->fit().classes.size() == 1);
  exchange(one, 12);
  wanted.faults.refuse_beyond = 0;
  const Joined none = join(wanted, wanted);
  CHECK(!none.a && !none.b && has(none.why_a.text(), "errno 16") && has(none.why_b.text(), "errno 16"));
}

TEST(a_bad_cable_is_found_before_use) {
  Wanted wanted = unreliable();
  auto silent = verbs_pairs::wires(wanted);
  silent[0]->blocked = true;
  wanted.settings.retransmit_ms = 1;
  const Joined joined = join(wanted, wanted, 20, silent);
  CHECK(!joined.a && !joined.b);
  CHECK_TEXT(has(joined.why_a.text(), "verifying the cables"), joined.why_a.text());
  CHECK(silent[0]->queue_pairs.empty() && silent[0]->region_count == 0);
}

TEST(a_peer_that_is_not_there_is_a_timeout_or_a_loss) {
  const auto alone = [](auto work, double seconds) {
    const pairs::Sockets control = pairs::tcp_sockets();
    Wanted wanted;
    Status why;
    std::thread other([&] { work(control.b); });
    const auto link = verbs_link(control.a, verbs_pairs::ends(verbs_pairs::wires(wanted), wanted.limits, "a"),
                                 wanted.options, wanted.settings, Deadline::after(seconds), why);
    other.join();
    CHECK(!link);
    return why;
  };
  CHECK(alone([](int) {}, 0.05).code() == Code::kTimeout);
  CHECK(alone([](int fd) { ::close(fd); }, 20).code() == Code::kPeerLost);
  const Status garbage = alone([](int fd) { CHECK(::send(fd, "GET / HTTP/1.1\r\n", 16, 0) == 16); }, 20);
  CHECK_TEXT(garbage.code() == Code::kCorrupt, garbage.text());
}

TEST(silence_on_the_control_socket_is_a_loss) {
  // The peer's end of the socket stays open, but a relay between them swallows all from now on.
  Wanted wanted;
  wanted.settings.silence_seconds = 0.3;
  const pairs::Sockets left = pairs::tcp_sockets();
  const pairs::Sockets right = pairs::tcp_sockets();
  std::atomic<bool> passing{true};
  std::atomic<bool> ending{false};
  std::thread relay([&] {
    while (!ending) {
      pollfd waits[2] = {{left.b, POLLIN, 0}, {right.a, POLLIN, 0}};
      (void)::poll(waits, 2, 20);
      char bytes[4096];
      for (const auto& [from, to] : {std::pair{left.b, right.a}, std::pair{right.a, left.b}}) {
        const ssize_t came = ::recv(from, bytes, sizeof bytes, MSG_DONTWAIT);
        if (came > 0 && passing) CHECK(::send(to, bytes, static_cast<std::size_t>(came), MSG_NOSIGNAL) == came);
      }
    }
  });
  auto wires = verbs_pairs::wires(wanted);
  Status why_a;
  Status why_b;
  std::unique_ptr<VerbsLink> b;
  std::thread other([&] {
    b = verbs_link(right.b, verbs_pairs::ends(wires, wanted.limits, "b"), wanted.options, wanted.settings,
                   Deadline::after(20), why_b);
  });
  const auto a = verbs_link(left.a, verbs_pairs::ends(wires, wanted.limits, "a"), wanted.options, wanted.settings,
                            Deadline::after(20), why_a);
  other.join();
  CHECK_TEXT(a && b, why_a.text() + why_b.text());
  passing = false;
  const Status status = receive(*a, 0, 1);
  CHECK_TEXT(status.code() == Code::kPeerLost && has(status.text(), "said nothing"), status.text());
  ending = true;
  relay.join();
  ::close(left.b);
  ::close(right.a);
}

TEST(settings_that_cannot_be_are_refused) {
  const auto refused = [](auto spoil) {
    LinkSettings settings;
    spoil(settings);
    try {
      settings.validate();
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(!refused([](LinkSettings&) {}));
  CHECK(refused([](LinkSettings& s) { s.retransmit_ms = 0; }));
  CHECK(refused([](LinkSettings& s) { s.silence_seconds = -1; }));
  CHECK(refused([](LinkSettings& s) { s.linger_seconds = 1e9; }));
  CHECK(refused([](LinkSettings& s) { s.max_attempts = 1; }));
  CHECK(refused([](LinkSettings& s) { s.links_per_device = 0; }));
}

CHECK_MAIN
