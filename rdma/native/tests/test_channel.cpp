#include "core/channel.h"

#include <numeric>

#include "tests/check.h"
#include "tests/fake_link.h"

using namespace mm;

namespace {

constexpr Epoch kEpoch{1, 4, 2};

struct Ends {
  fake::Pair pair;
  Channel a;
  Channel b;
  explicit Ends(std::size_t frame_limit = 1000)
      : pair(frame_limit), a(std::move(pair.a), kEpoch, 0, 0, 1), b(std::move(pair.b), kEpoch, 0, 1, 0) {}
};

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> payload(bytes);
  for (std::size_t i = 0; i < bytes; ++i) payload[i] = static_cast<std::byte>(i * 7 + i / 251);
  return payload;
}

const Message kFloats{Dtype::kFloat32, 11, "(2, 3)"};

template <class Way>
Progress until_stuck(Way& way) {
  Progress progress;
  do progress = way.progress();
  while (progress == Progress::kMoved);
  return progress;
}

// Sends one message of 24 bytes in frames of 8 with that fault at that frame; what the receiver makes of it.
Status receive_with(fake::Fault fault, int frame) {
  Ends ends(8);
  ends.pair.a_to_b->set_fault(frame, fault);
  auto payload = pattern(24);
  std::vector<std::byte> got(24);
  for (int i = 0; i < 2; ++i) {
    Channel::Sending sending(ends.a, kFloats, payload);
    if (until_stuck(sending) == Progress::kFailed) break;
  }
  ends.pair.a_to_b->end();
  for (int i = 0; i < 2; ++i) {
    Channel::Receiving receiving(ends.b, kFloats, got);
    if (until_stuck(receiving) == Progress::kFailed) return receiving.failure();
  }
  return {};
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(messages_of_all_sizes_arrive_whole) {
  for (std::size_t bytes : {0, 1, 999, 1000, 1001, 2000, 54321}) {
    Ends ends;
    auto payload = pattern(bytes);
    std::vector<std::byte> got(bytes);
    Channel::Sending sending(ends.a, kFloats, payload);
    Channel::Receiving receiving(ends.b, kFloats, got);
    CHECK(receiving.progress() == Progress::kIdle);
    CHECK(until_stuck(sending) == Progress::kDone);
    CHECK(sending.progress() == Progress::kDone);
    CHECK(until_stuck(receiving) == Progress::kDone);
    CHECK(got == payload);
  }
}

TEST(each_turn_moves_one_frame) {
  Ends ends;
  auto payload = pattern(3000);
  std::vector<std::byte> got(3000);
  Channel::Sending sending(ends.a, kFloats, payload);
  CHECK(sending.progress() == Progress::kMoved);
  Channel::Receiving receiving(ends.b, kFloats, got);
  CHECK(receiving.progress() == Progress::kMoved);
  CHECK(receiving.progress() == Progress::kIdle);
}

TEST(a_healthy_pair_of_messages_passes) { CHECK(receive_with(fake::Fault::kNone, 0).ok()); }

TEST(faults_become_the_right_errors) {
  struct Case {
    fake::Fault fault;
    int frame;
    Code code;
    const char* part;
  };
  const Case cases[] = {
      {fake::Fault::kCut, 0, Code::kPeerLost, "ended"},
      {fake::Fault::kCut, 2, Code::kPeerLost, "ended"},
      {fake::Fault::kEnd, 1, Code::kPeerLost, "ended"},
      {fake::Fault::kLose, 0, Code::kMismatch, "at offset 8"},
      {fake::Fault::kLose, 1, Code::kMismatch, "at offset 16"},
      {fake::Fault::kDuplicate, 0, Code::kMismatch, "at offset 8; came"},
      {fake::Fault::kDuplicate, 2, Code::kMismatch, "message 0"},
      {fake::Fault::kReorder, 0, Code::kMismatch, "at offset 8"},
      {fake::Fault::kReorder, 1, Code::kMismatch, "at offset 16"},
      {fake::Fault::kFlipHeader, 0, Code::kCorrupt, ""},
      {fake::Fault::kFlipHeader, 1, Code::kCorrupt, ""},
      {fake::Fault::kOversize, 0, Code::kMismatch, "25 bytes"},
      {fake::Fault::kOtherEpoch, 0, Code::kMismatch, "epoch 1.5.2"},
      {fake::Fault::kOtherEpoch, 1, Code::kMismatch, "epoch 1.4.2"},
      {fake::Fault::kOtherSource, 0, Code::kMismatch, "from rank 7"},
      {fake::Fault::kProbe, 0, Code::kMismatch, "came probe"},
  };
  for (const Case& c : cases) {
    Status status = receive_with(c.fault, c.frame);
    CHECK_TEXT(status.code() == c.code, status.text());
    CHECK_TEXT(has(status.text(), c.part), status.text());
  }
}

TEST(a_mismatch_names_both_sides_in_full) {
  Ends ends;
  auto payload = pattern(12);
  std::vector<std::byte> got(24);
  Channel::Sending sending(ends.a, {Dtype::kFloat16, 12, "(6,)"}, payload);
  CHECK(until_stuck(sending) == Progress::kDone);
  Channel::Receiving receiving(ends.b, kFloats, got);
  CHECK(until_stuck(receiving) == Progress::kFailed);
  const std::string& text = receiving.failure().text();
  for (const char* part : {"rank 0", "rank 1", "float32", "float16", "(2, 3)", "24 bytes", "12 bytes", "epoch 1.4.2",
                           "message 0", "point to point", "0000000b", "0000000c"}) {
    CHECK_TEXT(has(text, part), text);
  }
}

TEST(another_operation_of_the_same_shape_is_named) {
  Ends ends;
  auto payload = pattern(24);
  std::vector<std::byte> got(24);
  Message sum = kFloats;
  sum.operation = Operation::kAllSum;
  Message max = kFloats;
  max.operation = Operation::kAllMax;
  Channel::Sending sending(ends.a, sum, payload);
  CHECK(until_stuck(sending) == Progress::kDone);
  Channel::Receiving receiving(ends.b, max, got);
  CHECK(until_stuck(receiving) == Progress::kFailed);
  const std::string& text = receiving.failure().text();
  CHECK_TEXT(has(text, "all_max of (2, 3)") && has(text, "all_sum of (2, 3)"), text);
}

TEST(an_empty_frame_within_a_message_is_no_endless_loop) {
  Ends ends;
  FrameHeader header;
  header.dtype = static_cast<std::uint8_t>(Dtype::kFloat32);
  header.epoch = kEpoch;
  header.message_bytes = 24;
  header.shape_hash = 11;
  header.target = 1;
  CHECK(ends.a.link().sender().try_send(header, {}) == Progress::kDone);
  std::vector<std::byte> got(24);
  Channel::Receiving receiving(ends.b, kFloats, got);
  CHECK(until_stuck(receiving) == Progress::kFailed);
}

TEST(tags_of_operations_differ) {
  for (std::uint32_t hash : {0u, 1u, 0xdeadbeefu}) {
    CHECK(tag_of(hash, Operation::kMessage) == hash);
    CHECK(tag_of(hash, Operation::kAllSum) != tag_of(hash, Operation::kAllMax));
    CHECK(tag_of(hash, Operation::kAllGather) != tag_of(hash, Operation::kSumScatter));
  }
}

CHECK_MAIN
