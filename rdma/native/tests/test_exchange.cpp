#include "core/exchange.h"

#include <ctime>
#include <numeric>
#include <thread>

#include "tests/check.h"
#include "tests/fake_link.h"

using namespace mm;

namespace {

const Message kBytes{Dtype::kBytes, 0, "bytes"};

struct Ends {
  fake::Pair pair;
  Channel a;
  Channel b;
  explicit Ends(std::uint16_t other = 1)
      : a(std::move(pair.a), {}, 0, 0, other), b(std::move(pair.b), {}, 0, other, 0) {}
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

TEST(both_directions_at_once) {
  Ends ends;
  std::vector<std::byte> mine(100000, std::byte{1});
  std::vector<std::byte> theirs(70000, std::byte{2});
  std::vector<std::byte> got_a(70000);
  std::vector<std::byte> got_b(100000);
  ends.pair.a_to_b->set_capacity(2);
  ends.pair.b_to_a->set_capacity(2);
  auto run = [](Channel& channel, std::span<const std::byte> out, std::span<std::byte> in) {
    Stopper stopper;
    Exchange exchange(stopper, 20);
    exchange.send(channel, kBytes, out);
    exchange.receive(channel, kBytes, in);
    auto outcome = exchange.run(Deadline::after(20));
    CHECK_TEXT(outcome.status.ok(), outcome.status.text());
  };
  std::thread other([&] { run(ends.b, theirs, got_b); });
  run(ends.a, mine, got_a);
  other.join();
  CHECK(got_a == theirs && got_b == mine);
}

TEST(an_exchange_of_nothing_is_done) {
  Stopper stopper;
  Exchange exchange(stopper, 20);
  CHECK(exchange.run(Deadline::after(1)).status.ok());
}

TEST(the_deadline_names_who_is_waited_for_and_costs_no_cpu) {
  Ends first(1);
  Ends second(2);
  Stopper stopper;
  std::vector<std::byte> got(10);
  Exchange exchange(stopper, 20);
  exchange.receive(first.a, kBytes, got);
  exchange.receive(second.a, kBytes, got);
  auto start = Clock::now();
  double cpu = cpu_seconds();
  auto outcome = exchange.run(Deadline::after(0.3));
  CHECK(outcome.status.code() == Code::kTimeout);
  CHECK_TEXT(outcome.status.text().find("ranks 1, 2") != std::string::npos, outcome.status.text());
  CHECK(outcome.peer == -1);
  CHECK(seconds_since(start) >= 0.3);
  CHECK(cpu_seconds() - cpu < 0.15);
}

TEST(the_deadline_holds_while_bytes_trickle) {
  Ends ends;
  Stopper stopper;
  std::vector<std::byte> payload(100000);
  std::vector<std::byte> got(100000);
  std::atomic<bool> over{false};
  std::thread trickle([&] {
    Channel::Sending sending(ends.b, kBytes, payload);
    while (!over && sending.progress() == Progress::kMoved) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  });
  Exchange exchange(stopper, 20);
  exchange.receive(ends.a, kBytes, got);
  auto start = Clock::now();
  auto outcome = exchange.run(Deadline::after(0.2));
  CHECK(outcome.status.code() == Code::kTimeout && outcome.peer == 1);
  CHECK(seconds_since(start) < 10);
  over = true;
  trickle.join();
}

TEST(the_stopper_ends_spinning_and_blocking_waits) {
  for (double spin_us : {0.0, 1e7}) {
    Ends ends;
    Stopper stopper;
    std::vector<std::byte> got(10);
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      stopper.stop();
      stopper.stop();
    });
    Exchange exchange(stopper, spin_us);
    exchange.receive(ends.a, kBytes, got);
    auto start = Clock::now();
    CHECK(exchange.run(Deadline::after(30)).status.code() == Code::kAborted);
    CHECK(seconds_since(start) < 10);
    other.join();
  }
}

TEST(one_busy_operation_does_not_starve_another) {
  Ends busy;
  Ends other(2);
  Stopper stopper;
  // The first's message is endless as far as this test goes; the second's must still get through.
  std::vector<std::byte> large(std::size_t{64} << 20);
  std::vector<std::byte> small(8, std::byte{5});
  std::vector<std::byte> got_small(8);
  busy.pair.a_to_b->set_capacity(1000);
  std::atomic<bool> received{false};
  std::thread drain([&] {
    Exchange exchange(stopper, 20);
    exchange.receive(other.b, kBytes, got_small);
    CHECK(exchange.run(Deadline::after(20)).status.ok());
    received = true;
    stopper.stop();
  });
  Stopper own;
  Exchange exchange(stopper, 20);
  exchange.send(busy.a, kBytes, large);
  exchange.send(other.a, kBytes, small);
  CHECK(exchange.run(Deadline::after(20)).status.code() == Code::kAborted);
  drain.join();
  CHECK(received && got_small == small);
}

TEST(a_failing_link_ends_the_exchange_and_is_named) {
  Ends good(1);
  Ends bad(2);
  Stopper stopper;
  std::vector<std::byte> got(10);
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    bad.b.link().abort();
  });
  Exchange exchange(stopper, 20);
  exchange.receive(good.a, kBytes, got);
  exchange.receive(bad.a, kBytes, got);
  auto outcome = exchange.run(Deadline::after(20));
  other.join();
  CHECK(outcome.status.code() == Code::kPeerLost && outcome.peer == 2);
}

CHECK_MAIN
