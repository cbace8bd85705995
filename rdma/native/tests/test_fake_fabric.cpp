// What the fake verbs library does with messages, through the same code that speaks to a real one. The clock is moved
// by hand wherever time matters.

#include <poll.h>

#include <chrono>

#include "tests/fake_fabric.h"
#include "verbs/abi.h"

using namespace fake_fabric;
namespace abi = mm::verbs::abi;

namespace {

constexpr const char* kByHand = "manual_clock=1;latency_ns=10000;bytes_per_second=1000000000;cables=a.fake0-b.fake0";

void fill(std::byte* at, std::size_t bytes, unsigned seed) {
  for (std::size_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>((i * 7 + seed) & 0xff);
}

}  // namespace

TEST(a_send_meets_the_receive_that_was_posted_first) {
  Fabric fabric(kOneCable);
  Pair ends(fabric);
  must(ends.b.pair->post_receive(10, 0, 8192));
  must(ends.b.pair->post_receive(11, 8192, 8192));
  fill(ends.a.at(0), 16384, 3);
  must(ends.a.pair->post_send(1, 0, 8192));
  must(ends.a.pair->post_send(2, 8192, 8192));
  const auto received = ends.b.polled();
  CHECK(received.size() == 2);
  CHECK(received[0].id == 10 && received[0].receive && received[0].ok && received[0].bytes == 8192);
  CHECK(received[1].id == 11);
  CHECK(std::memcmp(ends.a.at(0), ends.b.at(0), 16384) == 0);
  const auto sent = ends.a.polled();
  CHECK(sent.size() == 2);
  CHECK(sent[0].id == 1 && !sent[0].receive && sent[0].ok && sent[1].id == 2);
  CHECK(fabric.counter("cable0.end0.delivered") == 2);
}

TEST(both_directions_at_once) {
  Fabric fabric(kOneCable);
  Pair ends(fabric);
  must(ends.a.pair->post_receive(1, 0, 4096));
  must(ends.b.pair->post_receive(2, 0, 4096));
  must(ends.a.pair->post_send(3, 4096, 4096));
  must(ends.b.pair->post_send(4, 4096, 4096));
  CHECK(ends.a.polled().size() == 2);
  CHECK(ends.b.polled().size() == 2);
}

TEST(an_unreliable_send_without_a_receive_is_dropped_in_silence) {
  Fabric fabric(kOneCable);
  Pair ends(fabric);
  must(ends.a.pair->post_send(1, 0, 4096));
  const auto sent = ends.a.polled();
  CHECK(sent.size() == 1 && sent[0].ok);
  // Posted after it arrived, though nobody looked in between.
  must(ends.b.pair->post_receive(2, 0, 4096));
  CHECK(ends.b.polled().empty());
  CHECK(fabric.counter("cable0.end0.no_receive") == 1);
  must(ends.a.pair->post_send(3, 0, 4096));
  CHECK(ends.b.polled().size() == 1);
}

TEST(with_flow_control_a_send_waits_for_its_receive) {
  Fabric fabric(std::string("flow_control=1;") + kOneCable);
  Pair ends(fabric);
  must(ends.a.pair->post_send(1, 0, 4096));
  CHECK(ends.a.polled().empty());
  CHECK(ends.b.polled().empty());
  must(ends.b.pair->post_receive(2, 0, 4096));
  CHECK(ends.a.polled().size() == 1);
  CHECK(ends.b.polled().size() == 1);
}

TEST(with_flow_control_a_send_to_nobody_waits_for_ever) {
  Fabric fabric(std::string("flow_control=1;") + kByHand);
  auto ends = std::make_unique<Pair>(fabric);
  must(ends->b.pair->post_receive(1, 0, 4096));
  ends->b.pair.reset();
  must(ends->a.pair->post_send(2, 0, 4096));
  fabric.command("advance 1000000000000");
  CHECK(ends->a.polled().empty());
}

TEST(a_message_arrives_after_its_bytes_and_the_latency) {
  Fabric fabric(kByHand);  // 1 byte a nanosecond, 10 us
  Pair ends(fabric);
  for (std::uint64_t id = 0; id < 2; ++id) must(ends.b.pair->post_receive(id, id * 65536, 65536));
  for (std::uint64_t id = 0; id < 2; ++id) must(ends.a.pair->post_send(id, id * 65536, 65536));
  fabric.command("advance 65535");
  CHECK(ends.a.polled().empty());
  fabric.command("advance 1");
  CHECK(ends.a.polled().size() == 1);  // the first has left
  fabric.command("advance 9999");
  CHECK(ends.b.polled().empty());
  fabric.command("advance 1");
  CHECK(ends.b.polled().size() == 1);
  fabric.command("advance 55536");  // the second one left behind the first
  CHECK(ends.a.polled().size() == 1);
  CHECK(ends.b.polled().empty());
  fabric.command("advance 10000");
  CHECK(ends.b.polled().size() == 1);
  CHECK(fabric.command("now") == "now=141072\n");
}

TEST(directions_do_not_slow_one_another) {
  Fabric fabric(kByHand);
  Pair ends(fabric);
  must(ends.a.pair->post_receive(1, 0, 65536));
  must(ends.b.pair->post_receive(1, 0, 65536));
  must(ends.a.pair->post_send(2, 65536, 65536));
  must(ends.b.pair->post_send(2, 65536, 65536));
  fabric.command("advance 75536");
  CHECK(ends.a.polled().size() == 2);
  CHECK(ends.b.polled().size() == 2);
}

TEST(a_receive_of_another_number_of_frames_fails_and_ends_the_connection) {
  for (const std::uint32_t receive_bytes : {4096U, 32768U}) {
    Fabric fabric(kOneCable);
    Pair ends(fabric);
    must(ends.b.pair->post_receive(1, 0, receive_bytes));
    must(ends.b.pair->post_receive(2, 65536, 16384));
    must(ends.a.pair->post_send(3, 0, 16384));
    const auto received = ends.b.polled();
    CHECK(received.size() == 2);
    CHECK(!received[0].ok && received[0].receive && received[0].id == 1);
    CHECK(received[0].status == abi::kLocalLengthError);
    CHECK(!received[1].ok && received[1].receive && received[1].status == abi::kFlushed);
    CHECK(fabric.counter("cable0.end0.length_errors") == 1);
  }
}

TEST(without_the_rule_of_frames_a_longer_receive_takes_a_message) {
  Fabric fabric(std::string("flavour=linux;") + kOneCable);
  Pair ends(fabric);
  must(ends.b.pair->post_receive(1, 0, 65536));
  must(ends.a.pair->post_send(2, 0, 100));
  const auto received = ends.b.polled();
  CHECK(received.size() == 1 && received[0].ok && received[0].bytes == 100);
  must(ends.b.pair->post_receive(3, 0, 99));
  must(ends.a.pair->post_send(4, 0, 100));
  const auto failed = ends.b.polled();
  CHECK(failed.size() == 1 && failed[0].status == abi::kLocalLengthError);
}

TEST(completions_overtake_one_another_across_queue_pairs_only) {
  Fabric fabric(std::string("jitter_ns=1000000;manual_clock=1;") + kOneCable);
  const QueueShape shape = shape_of(Mode::kUC);
  Pair first(fabric, shape);
  Pair second(fabric, shape);
  std::vector<int> order;
  std::uint64_t seen[2] = {0, 0};
  for (std::uint64_t id = 0; id < 16; ++id) {
    must(first.b.pair->post_receive(id, 0, 4096));
    must(second.b.pair->post_receive(id, 0, 4096));
    must(first.a.pair->post_send(id, 0, 4096));
    must(second.a.pair->post_send(id, 0, 4096));
  }
  for (int step = 0; step < 300 && order.size() < 32; ++step) {
    fabric.command("advance 10000");
    int which = 0;
    for (End* end : {&first.b, &second.b}) {
      for (const Completion& completion : end->polled()) {
        CHECK(completion.id == seen[which]++);  // in order within a queue pair
        order.push_back(which);
      }
      ++which;
    }
  }
  CHECK(order.size() == 32);
  bool alternates = true;
  for (std::size_t i = 0; i < order.size(); ++i) alternates = alternates && order[i] == static_cast<int>(i % 2);
  CHECK(!alternates);
}

TEST(a_waiting_descriptor_wakes_for_what_the_peer_sends) {
  Fabric fabric(kOneCable);
  DeviceOptions options;
  options.events = mm::verbs::Choice::kYes;
  Pair ends(fabric, shape_of(Mode::kUC), options);
  must(ends.b.pair->post_receive(1, 0, 4096));
  CHECK(ends.b.pair->arm());
  pollfd waiting{ends.b.pair->wait_descriptor(), POLLIN, 0};
  CHECK(::poll(&waiting, 1, 0) == 0);
  must(ends.a.pair->post_send(1, 0, 4096));
  CHECK(::poll(&waiting, 1, 30000) == 1);
  CHECK(ends.b.polled().size() == 1);
  CHECK(ends.b.pair->arm());  // takes the event back
  CHECK(::poll(&waiting, 1, 0) == 0);
  // What is there already needs no wait.
  must(ends.b.pair->post_receive(2, 0, 4096));
  must(ends.a.pair->post_send(2, 0, 4096));
  CHECK(!ends.b.pair->arm());
  CHECK(ends.b.polled().size() == 1);
}

TEST(a_waiting_descriptor_wakes_when_a_message_is_due) {
  // Nobody does anything while the message is on its way: only the descriptor can tell.
  Fabric fabric(std::string("latency_ns=20000000;") + kOneCable);
  DeviceOptions options;
  options.events = mm::verbs::Choice::kYes;
  Pair ends(fabric, shape_of(Mode::kUC), options);
  must(ends.b.pair->post_receive(1, 0, 4096));
  must(ends.a.pair->post_send(1, 0, 4096));
  std::vector<Completion> received;
  while (received.empty()) {
    if (ends.b.pair->arm()) {
      pollfd waiting{ends.b.pair->wait_descriptor(), POLLIN, 0};
      CHECK(::poll(&waiting, 1, 30000) == 1);
    }
    received = ends.b.polled();
  }
  CHECK(received.size() == 1 && received[0].ok);
}

TEST(a_waiting_descriptor_wakes_for_what_its_own_side_finishes) {
  Fabric fabric(kByHand);
  DeviceOptions options;
  options.events = mm::verbs::Choice::kYes;
  Pair ends(fabric, shape_of(Mode::kUC), options);
  pollfd waiting{ends.a.pair->wait_descriptor(), POLLIN, 0};
  CHECK(ends.a.pair->arm());
  must(ends.a.pair->post_send(1, 0, 0));  // no bytes: it leaves at once
  CHECK(::poll(&waiting, 1, 30000) == 1);
  CHECK(ends.a.polled().size() == 1);
  CHECK(ends.a.pair->arm());
  must(ends.a.pair->post_send(2, 0, 4096));
  CHECK(::poll(&waiting, 1, 0) == 0);
  fabric.command("advance 4096");
  CHECK(::poll(&waiting, 1, 30000) == 1);
  CHECK(ends.a.polled().size() == 1);
}

TEST(a_waiting_descriptor_wakes_when_the_cable_is_cut) {
  Fabric fabric(kOneCable);
  DeviceOptions options;
  options.events = mm::verbs::Choice::kYes;
  Pair ends(fabric, shape_of(Mode::kUC), options);
  CHECK(ends.b.pair->arm());
  fabric.command("cut 0");
  pollfd waiting{ends.b.pair->wait_descriptor(), POLLIN, 0};
  CHECK(::poll(&waiting, 1, 30000) == 1);
}

TEST(a_full_pool_makes_sends_wait_and_frees_them_later) {
  Fabric fabric(std::string("pool_bytes=65536;") + kOneCable);
  Pair ends(fabric);
  for (std::uint64_t id = 0; id < 4; ++id) must(ends.b.pair->post_receive(id, id * 65536, 65536));
  for (std::uint64_t id = 0; id < 4; ++id) {
    fill(ends.a.at(id * 65536), 65536, static_cast<unsigned>(id));
    must(ends.a.pair->post_send(id, id * 65536, 65536));
  }
  std::size_t received = 0;
  std::size_t sent = 0;
  for (int turn = 0; turn < 8; ++turn) {
    received += ends.b.polled().size();
    sent += ends.a.polled().size();
  }
  CHECK(received == 4 && sent == 4);
  CHECK(std::memcmp(ends.a.at(0), ends.b.at(0), 4 * 65536) == 0);
  CHECK(fabric.counter("free_blocks") == fabric.counter("blocks"));
}

TEST(a_slow_fabric_counts_less_time_than_the_machine) {
  const auto before = std::chrono::steady_clock::now();
  Fabric fabric(std::string("slowdown=1000;") + kOneCable);
  const std::string text = fabric.command("now");
  const std::chrono::nanoseconds most = std::chrono::steady_clock::now() - before;
  CHECK(text.starts_with("now="));
  CHECK(std::strtoll(text.c_str() + 4, nullptr, 10) <= most.count() / 1000);
}

CHECK_MAIN
