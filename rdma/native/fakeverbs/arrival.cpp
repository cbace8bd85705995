// A message arrives: it meets the receive that was posted first, or is dropped.

#include <algorithm>
#include <cstring>

#include "fakeverbs/flight.h"

namespace mm::fakeverbs {
namespace {

std::uint64_t not_ready_until(const Message& message) {
  constexpr std::uint8_t kForEver = 7;
  constexpr std::uint64_t kEachNs = 640'000;
  if (message.not_ready_retries >= kForEver) return kNever;
  return message.arrives_at + (std::uint64_t{message.not_ready_retries} + 1) * kEachNs;
}

bool covers(const Settings& settings, std::uint32_t receive_bytes, std::uint32_t message_bytes) {
  if (receive_bytes < message_bytes) return false;
  return !settings.equal_frames || places_of(settings, receive_bytes) == places_of(settings, message_bytes);
}

// The receive completes with an error, which ends the connection.
void fail_receive(FakeQueuePair& pair, std::uint32_t index, const PostedReceive& receive, std::uint32_t status,
                  std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  const Message& message = mapped.segment().messages[index];
  finish(pair, true, receive.id, status, 0, message.arrives_at, places_of(mapped.segment().settings, receive.bytes));
  answer(mapped, index, MessageState::kRefused, abi::kRemoteInvalidRequest, now);
  move_to_error(pair);
}

// The connection does not carry it: the cable was cut under it, or it comes from another connection.
bool is_stray(const QueuePairRecord& record, const CableRecord& cable, const Message& message, bool& cut) {
  cut = cable.cut_at != kNever && message.begun_at <= cable.cut_at && message.arrives_at >= cable.cut_at;
  const bool open = record.state == abi::kReadyToReceive || record.state == abi::kReadyToSend;
  return cut || !open || message.packet_sequence != record.receive_sequence;
}

// No receive is there. False: a reliable message waits for one.
bool miss(Mapped& mapped, QueuePairRecord& record, std::uint64_t now) {
  Segment& segment = mapped.segment();
  const Message& message = segment.messages[record.inbox_first];
  const bool waits = message.reliable && message.state != MessageState::kAbandoned;
  if (waits && not_ready_until(message) > now) return false;
  ++segment.cables[message.cable].from[message.end].counters.no_receive;
  answer(mapped, take_first(segment, record), MessageState::kRefused, abi::kNotReadyRetriesExceeded, now);
  return true;
}

void meet(FakeQueuePair& pair, std::uint32_t index, const PostedReceive& receive, std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  Segment& segment = mapped.segment();
  const Settings& settings = segment.settings;
  const Message& message = segment.messages[index];
  Counters& counters = segment.cables[message.cable].from[message.end].counters;
  if (!covers(settings, receive.bytes, message.bytes)) {
    ++counters.length_errors;
    return fail_receive(pair, index, receive, abi::kLocalLengthError, now);
  }
  std::byte* into = bytes_of(pair, receive.key, receive.address, receive.bytes);
  if (into == nullptr || message.fails) {
    return fail_receive(pair, index, receive, into == nullptr ? abi::kLocalProtectionError : abi::kGeneralError, now);
  }
  const std::uint64_t written = message.torn ? message.bytes / 2 : message.bytes;
  each_block(mapped, message, [&](const std::byte* block, std::uint64_t offset, std::uint64_t count) {
    if (offset < written) std::memcpy(into + offset, block, std::min(count, written - offset));
  });
  ++counters.delivered;
  finish(pair, true, receive.id, abi::kSuccess, message.bytes, message.arrives_at, places_of(settings, receive.bytes));
  answer(mapped, index, MessageState::kTaken, 0, message.arrives_at + settings.latency_ns);
}

}  // namespace

bool arrive(FakeQueuePair& pair, std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  Segment& segment = mapped.segment();
  QueuePairRecord& record = record_of(pair);
  const Message& message = segment.messages[record.inbox_first];
  CableRecord& cable = segment.cables[message.cable];
  bool cut = false;
  if (is_stray(record, cable, message, cut)) {
    Counters& counters = cable.from[message.end].counters;
    ++(cut ? counters.lost : counters.no_receive);
    const std::uint64_t at = now + segment.settings.retry_ns;
    answer(mapped, take_first(segment, record), MessageState::kRefused, abi::kRetriesExceeded, at);
    return true;
  }
  if (pair.receives.empty()) return miss(mapped, record, now);
  const PostedReceive receive = pair.receives.front();
  pair.receives.pop_front();
  --record.receives;
  meet(pair, take_first(segment, record), receive, now);
  return true;
}

std::uint64_t next_look(const FakeQueuePair& pair, std::uint64_t now) {
  const Message& message = mapped_of(pair).segment().messages[record_of(pair).inbox_first];
  return message.arrives_at > now ? message.arrives_at : not_ready_until(message);
}

}  // namespace mm::fakeverbs
