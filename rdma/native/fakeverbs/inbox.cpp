// Messages on their way to a queue pair, and what their senders learn of them.

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fakeverbs/flight.h"

namespace mm::fakeverbs {
namespace {

// Empties the inbox, and the number is free again.
void bury(Mapped& mapped, QueuePairRecord& record) {
  turn_away(mapped, record);
  record.used = false;
  record.armed = false;
  record.receives = 0;
}

}  // namespace

QueuePairRecord* remote_of(Mapped& mapped, const QueuePairRecord& record) {
  Segment& segment = mapped.segment();
  const DeviceRecord& device = segment.devices[record.device];
  if (device.cable == kNone) return nullptr;
  const std::uint32_t other = segment.cables[device.cable].devices[1 - device.end];
  QueuePairRecord& remote = segment.queue_pairs[record.remote_number % kMostQueuePairs];
  if (!remote.used || remote.number != record.remote_number || remote.device != other) return nullptr;
  bool addressed = false;
  for (int index = 0; index < kGids; ++index) {
    const abi::Gid gid = gid_of(segment, other, index);
    addressed = addressed || std::memcmp(gid.raw, record.remote_gid, sizeof gid.raw) == 0;
  }
  if (!addressed) return nullptr;
  if (::kill(remote.pid, 0) != 0 && errno == ESRCH) {
    bury(mapped, remote);
    return nullptr;
  }
  return &remote;
}

bool can_answer(Mapped& mapped, std::uint32_t index) {
  Segment& segment = mapped.segment();
  const Message& message = segment.messages[index];
  if (!segment.cables[message.cable].up) return false;
  const QueuePairRecord* remote = remote_of(mapped, segment.queue_pairs[message.sender]);
  if (remote == nullptr) return false;
  return (remote->state == abi::kReadyToReceive || remote->state == abi::kReadyToSend) && process_lives(remote->pid);
}

void append(Mapped& mapped, QueuePairRecord& remote, std::uint32_t index) {
  Segment& segment = mapped.segment();
  if (remote.inbox_first == kNone) {
    remote.inbox_first = index;
  } else {
    segment.messages[remote.inbox_last].next = index;
  }
  remote.inbox_last = index;
  ++remote.inbox_count;
  rouse(mapped, remote, segment.messages[index].arrives_at);
}

std::uint32_t take_first(Segment& segment, QueuePairRecord& record) {
  const std::uint32_t index = record.inbox_first;
  record.inbox_first = segment.messages[index].next;
  if (record.inbox_first == kNone) record.inbox_last = kNone;
  --record.inbox_count;
  return index;
}

void answer(Mapped& mapped, std::uint32_t index, MessageState state, std::uint32_t refusal, std::uint64_t at) {
  Segment& segment = mapped.segment();
  Message& message = segment.messages[index];
  QueuePairRecord& sender = segment.queue_pairs[message.sender];
  if (!message.reliable || message.state == MessageState::kAbandoned || !sender.used ||
      sender.number != message.sender_number) {
    free_message(mapped, index);
    return;
  }
  release_blocks(mapped, message);
  message.state = state;
  message.refusal = refusal;
  message.answered_at = at;
  rouse(mapped, sender, at);
}

void abandon(Mapped& mapped, std::uint32_t index) {
  Message& message = mapped.segment().messages[index];
  if (message.state == MessageState::kFlying) {
    message.state = MessageState::kAbandoned;
  } else {
    free_message(mapped, index);
  }
}

void turn_away(Mapped& mapped, QueuePairRecord& record) {
  Segment& segment = mapped.segment();
  const std::uint64_t now = fabric_now(segment);
  while (record.inbox_first != kNone) {
    const std::uint32_t index = take_first(segment, record);
    const std::uint64_t at = std::max(now, segment.messages[index].arrives_at) + segment.settings.retry_ns;
    answer(mapped, index, MessageState::kRefused, abi::kRetriesExceeded, at);
  }
}

void forget(FakeQueuePair& pair) {
  Mapped& mapped = mapped_of(pair);
  for (const PostedSend& send : pair.sends) {
    if (send.message != kNone) abandon(mapped, send.message);
  }
  pair.sends.clear();
  bury(mapped, record_of(pair));
}

void bury_the_dead(Mapped& mapped) {
  Segment& segment = mapped.segment();
  for (QueuePairRecord& record : segment.queue_pairs) {
    if (record.used && !process_lives(record.pid)) bury(mapped, record);
  }
  for (RegionRecord& region : segment.regions) {
    if (region.used && !process_lives(region.pid)) region.used = false;
  }
}

}  // namespace mm::fakeverbs
