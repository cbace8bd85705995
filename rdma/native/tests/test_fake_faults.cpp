// The faults of the fake verbs library, and reliable connections under them.

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

TEST(a_reliable_send_waits_for_a_peer_that_does_not_look) {
  Fabric fabric(std::string("flavour=linux;retry_ns=1000;") + kByHand);
  Pair ends(fabric, shape_of(Mode::kRC));
  must(ends.b.pair->post_receive(1, 0, 4096));
  must(ends.a.pair->post_send(2, 0, 4096));
  for (int i = 0; i < 20; ++i) {
    fabric.command("advance 100000");  // a hundred times the retries
    CHECK(ends.a.polled().empty());
  }
  CHECK(ends.b.polled().size() == 1);
  fabric.command("advance 10000");
  const auto sent = ends.a.polled();
  CHECK(sent.size() == 1 && sent[0].ok);
}

CHECK_MAIN
