// What the fake verbs library does with messages, through the same code that speaks to a real one. The clock is moved
// by hand wherever time matters.

#include <poll.h>

#include "tests/fake_fabric.h"
#include "verbs/abi.h"

using namespace fake_fabric;
namespace abi = mm::verbs::abi;

namespace {

constexpr const char* kByHand = "manual_clock=1;latency_ns=10000;bytes_per_second=1000000000;cables=a.fake0-b.fake0";

void fill(std::byte* at, std::size_t bytes, unsigned seed) {
  for (std::size_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>((i * 7 + seed) & 0xff);
}

std::size_t lost_of(Fabric& fabric) {
  return fabric.counter("cable0.end0.lost");
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

TEST(the_same_seed_loses_the_same_messages) {
  constexpr int kMessages = 400;
  std::vector<std::vector<std::uint64_t>> runs;
  for (const char* seed : {"1", "1", "2"}) {
    Fabric fabric("loss=0.1;seed=" + std::string(seed) + ";" + kOneCable);
    Pair ends(fabric);
    std::vector<std::uint64_t> arrived;
    for (std::uint64_t id = 0; id < kMessages; ++id) {
      fill(ends.a.at(0), 8, static_cast<unsigned>(id));
      std::memcpy(ends.a.at(0), &id, sizeof id);
      if (arrived.empty() || ends.b.polled().empty()) must(ends.b.pair->post_receive(0, 0, 4096));
      must(ends.a.pair->post_send(id, 0, 4096));
      (void)ends.a.polled();
      for (const Completion& completion : ends.b.polled()) {
        CHECK(completion.ok);
        std::uint64_t got = 0;
        std::memcpy(&got, ends.b.at(0), sizeof got);
        arrived.push_back(got);
      }
      // A lost message leaves its receive where it is: take it back by the next one.
      if (arrived.empty() || arrived.back() != id) {
        fabric.command("set loss=0");
        must(ends.a.pair->post_send(id, 0, 4096));
        (void)ends.a.polled();
        CHECK(ends.b.polled().size() == 1);
        fabric.command("set loss=0.1");
      }
    }
    CHECK(arrived.size() > kMessages * 8 / 10 && arrived.size() < kMessages);
    CHECK(lost_of(fabric) == kMessages - arrived.size());
    runs.push_back(arrived);
  }
  CHECK(runs[0] == runs[1]);
  CHECK(runs[0] != runs[2]);
}

TEST(a_command_loses_the_next_messages) {
  Fabric fabric(kOneCable);
  Pair ends(fabric);
  for (std::uint64_t id = 0; id < 3; ++id) must(ends.b.pair->post_receive(id, 0, 4096));
  fabric.command("lose 0 0 2");
  for (std::uint64_t id = 0; id < 3; ++id) must(ends.a.pair->post_send(id, 0, 4096));
  CHECK(ends.b.polled().size() == 1);
  CHECK(ends.a.polled().size() == 3);
  CHECK(lost_of(fabric) == 2);
}

TEST(corrupt_and_torn_messages_complete_as_if_they_were_whole) {
  for (const std::string fault : {"corrupt", "torn"}) {
    Fabric fabric(fault + "=1;" + kOneCable);
    Pair ends(fabric);
    fill(ends.a.at(0), 65536, 1);
    std::memset(ends.b.at(0), 0, 65536);
    must(ends.b.pair->post_receive(1, 0, 65536));
    must(ends.a.pair->post_send(1, 0, 65536));
    const auto received = ends.b.polled();
    CHECK(received.size() == 1 && received[0].ok && received[0].bytes == 65536);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < 65536; ++i) wrong += *ends.a.at(i) != *ends.b.at(i) ? 1 : 0;
    CHECK(fault == "corrupt" ? wrong == 1 : wrong > 30000 && *ends.a.at(32767) == *ends.b.at(32767));
  }
}

TEST(injected_errors_end_the_connection) {
  for (const std::string fault : {"send_errors", "receive_errors"}) {
    Fabric fabric(fault + "=1;" + kOneCable);
    Pair ends(fabric);
    must(ends.b.pair->post_receive(1, 0, 4096));
    must(ends.a.pair->post_send(1, 0, 4096));
    const auto sent = ends.a.polled();
    const auto received = ends.b.polled();
    CHECK(sent.size() == 1 && received.size() == 1);
    CHECK(sent[0].ok == (fault == "receive_errors"));
    CHECK(received[0].ok == (fault == "send_errors"));
    CHECK((fault == "send_errors" ? sent[0] : received[0]).status == abi::kGeneralError);
  }
}

TEST(a_cut_cable_takes_the_port_down_and_swallows_what_is_on_it) {
  Fabric fabric(kByHand);
  Pair ends(fabric);
  for (std::uint64_t id = 0; id < 3; ++id) must(ends.b.pair->post_receive(id, 0, 4096));
  must(ends.a.pair->post_send(1, 0, 4096));
  fabric.command("advance 5000");
  fabric.command("cut 0");
  CHECK(!ends.a.opened->port_active() && !ends.b.opened->port_active());
  must(ends.a.pair->post_send(2, 0, 4096));
  fabric.command("advance 1000000");
  CHECK(ends.a.polled().size() == 2);  // an unreliable send says nothing
  CHECK(ends.b.polled().empty());
  CHECK(lost_of(fabric) == 2);
  fabric.command("join 0");
  CHECK(ends.a.opened->port_active());
  must(ends.a.pair->post_send(3, 0, 4096));
  fabric.command("advance 1000000");
  CHECK(ends.b.polled().size() == 1);
}

TEST(a_cut_cable_may_refuse_posts) {
  Fabric fabric(std::string("cut_refuses=1;") + kOneCable);
  Pair ends(fabric);
  fabric.command("cut 0");
  const Status refused = ends.a.pair->post_send(1, 0, 4096);
  CHECK(refused.code() == mm::Code::kLocal);
  CHECK_TEXT(refused.text().find("errno 5") != std::string::npos, refused.text());
  CHECK(!ends.b.pair->post_receive(1, 0, 4096).ok());
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

TEST(a_reliable_send_waits_for_its_receive) {
  Fabric fabric(std::string("flavour=linux;") + kOneCable);
  Pair ends(fabric, shape_of(Mode::kRC));
  fill(ends.a.at(0), 4096, 9);
  must(ends.a.pair->post_send(1, 0, 4096));
  CHECK(ends.b.polled().empty());
  CHECK(ends.a.polled().empty());
  must(ends.b.pair->post_receive(2, 0, 4096));
  CHECK(ends.b.polled().size() == 1);
  const auto sent = ends.a.polled();
  CHECK(sent.size() == 1 && sent[0].ok);
  CHECK(std::memcmp(ends.a.at(0), ends.b.at(0), 4096) == 0);
}

TEST(a_reliable_send_to_nobody_fails_after_its_retries) {
  Fabric fabric(std::string("flavour=linux;retry_ns=1000;") + kByHand);
  auto ends = std::make_unique<Pair>(fabric, shape_of(Mode::kRC));
  must(ends->a.pair->post_send(1, 0, 4096));
  must(ends->a.pair->post_send(2, 0, 4096));
  ends->b.pair.reset();
  fabric.command("advance 1000");
  CHECK(ends->a.polled().empty());
  fabric.command("advance 100000");
  const auto sent = ends->a.polled();
  CHECK(sent.size() == 2);
  CHECK(!sent[0].ok && sent[0].status == abi::kRetriesExceeded && sent[0].id == 1 && !sent[0].receive);
  CHECK(!sent[1].ok && sent[1].status == abi::kFlushed);
}

TEST(a_reliable_send_over_a_cut_cable_fails) {
  Fabric fabric(std::string("flavour=linux;retry_ns=1000;") + kByHand);
  Pair ends(fabric, shape_of(Mode::kRC));
  must(ends.b.pair->post_receive(1, 0, 4096));
  must(ends.a.pair->post_send(1, 0, 4096));
  fabric.command("cut 0");
  fabric.command("advance 100000");
  CHECK(ends.b.polled().empty());
  fabric.command("advance 1000000");
  const auto sent = ends.a.polled();
  CHECK(sent.size() == 1 && sent[0].status == abi::kRetriesExceeded);
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

TEST(a_connection_of_other_sequence_numbers_or_addresses_carries_nothing) {
  Fabric fabric("cables=a.fake0-b.fake0,a.fake1-b.fake1");
  const QueueShape shape = shape_of(Mode::kUC);
  End a(fabric, "a_fake0", shape);
  End b(fabric, "b_fake0", shape);
  End other(fabric, "b_fake1", shape);
  auto wrong = b.pair->address();
  wrong.packet_sequence = (wrong.packet_sequence + 1) & 0xffffff;
  must(a.pair->connect(wrong));
  must(b.pair->connect(a.pair->address()));
  must(other.pair->connect(a.pair->address()));
  for (End* end : {&a, &b, &other}) must(end->pair->post_receive(1, 0, 4096));
  must(b.pair->post_send(2, 0, 4096));  // a expects another sequence
  must(other.pair->post_send(2, 0, 4096));  // a is not at the other end of this cable
  for (const Completion& completion : a.polled()) CHECK(!completion.receive);
  must(a.pair->post_send(2, 0, 4096));  // b expects this one
  CHECK(b.polled().size() == 2);
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

CHECK_MAIN
