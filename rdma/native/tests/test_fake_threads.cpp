// A queue pair in the hands of two threads: one posts while another waits and polls, as a link's do.

#include <poll.h>

#include <atomic>
#include <thread>

#include "tests/fake_fabric.h"

using namespace fake_fabric;

namespace {

constexpr std::uint64_t kMessages = 300;
constexpr std::uint32_t kInFlight = 8;

// Waits for completions until so many came, and gives each to `on`.
template <typename On>
void collect(QueuePair& pair, std::uint64_t count, On on) {
  std::vector<Completion> found(16);
  while (count > 0) {
    const std::size_t got = pair.poll(found);
    for (std::size_t i = 0; i < got; ++i) {
      CHECK(found[i].ok);
      on(found[i]);
      --count;
    }
    if (got != 0 || count == 0) continue;
    if (pair.arm()) {
      pollfd waiting{pair.wait_descriptor(), POLLIN, 0};
      CHECK(::poll(&waiting, 1, 40000) == 1);
    }
    must(pair.failure());
  }
}

void run(const std::string& plan, Mode mode) {
  Fabric fabric(plan);
  DeviceOptions options;
  options.events = mm::verbs::Choice::kYes;
  Pair ends(fabric, shape_of(mode, kInFlight, 4096), options);
  std::atomic<std::uint64_t> sent{0};
  for (std::uint64_t id = 0; id < kInFlight; ++id) must(ends.b.pair->post_receive(id, id * 4096, 4096));
  std::thread sends([&] { collect(*ends.a.pair, kMessages, [&](const Completion&) { ++sent; }); });
  std::uint64_t expected = 0;
  std::thread receives([&] {
    collect(*ends.b.pair, kMessages, [&](const Completion& completion) {
      std::uint64_t number = 0;
      std::memcpy(&number, ends.b.at(completion.id * 4096), sizeof number);
      CHECK(number == expected++);
      if (expected + kInFlight <= kMessages) must(ends.b.pair->post_receive(completion.id, completion.id * 4096, 4096));
    });
  });
  for (std::uint64_t number = 0; number < kMessages; ++number) {
    while (number - sent >= kInFlight) std::this_thread::yield();
    const std::size_t offset = number % kInFlight * 4096;
    std::memcpy(ends.a.at(offset), &number, sizeof number);
    must(ends.a.pair->post_send(number, offset, 4096));
  }
  sends.join();
  receives.join();
  CHECK(expected == kMessages);
}

}  // namespace

TEST(one_thread_posts_and_another_waits) {
  run(std::string("flow_control=1;latency_ns=20000;") + kOneCable, Mode::kUC);
}

TEST(one_thread_posts_and_another_waits_reliably) {
  run(std::string("flavour=linux;") + kOneCable, Mode::kRC);
}

CHECK_MAIN
