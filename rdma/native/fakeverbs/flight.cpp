#include "fakeverbs/flight.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace mm::fakeverbs {
namespace {

std::uint64_t flight_ns(const Settings& settings, std::uint64_t bytes) {
  if (settings.bytes_per_second == 0) return 0;
  return static_cast<std::uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(settings.bytes_per_second));
}

// The fates of one message: drawn from the seed and its number, so a run can be had again.
class Dice {
 public:
  Dice(const Settings& settings, std::uint32_t cable, std::uint32_t end, std::uint64_t sequence)
      : state_(scramble(settings.seed ^ scramble((std::uint64_t{cable} << 1 | end) ^ scramble(sequence + 1)))) {}
  std::uint64_t next() { return state_ = scramble(state_ + 0x9e3779b97f4a7c15U); }
  bool hits(double share) { return static_cast<double>(next() >> 11) * 0x1p-53 < share; }

 private:
  std::uint64_t state_;
};

// The local bytes of a request; null where the key does not cover them.
std::byte* bytes_of(const FakeQueuePair& pair, std::uint32_t key, std::uint64_t address, std::uint64_t bytes) {
  const auto found = pair.owner->regions.find(key);
  if (found == pair.owner->regions.end()) return nullptr;
  const auto start = reinterpret_cast<std::uintptr_t>(found->second->addr);
  if (address < start || address - start > found->second->length) return nullptr;
  if (bytes > found->second->length - (address - start)) return nullptr;
  return reinterpret_cast<std::byte*>(address);
}

// The queue pair that a pair is connected to, where it is at the other end of the pair's cable; else null.
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

void release_blocks(Mapped& mapped, Message& message) {
  Segment& segment = mapped.segment();
  while (message.first_block != kNone) {
    const std::uint32_t block = message.first_block;
    message.first_block = segment.block_next()[block];
    segment.block_next()[block] = segment.free_block;
    segment.free_block = block;
    ++segment.free_blocks;
  }
  if (segment.pool_wanted) {
    segment.pool_wanted = false;
    rouse_all(mapped);
  }
}

// A message with room for so many bytes; kNone where the pool has none.
std::uint32_t take_message(Mapped& mapped, std::uint64_t bytes) {
  Segment& segment = mapped.segment();
  const auto blocks = static_cast<std::uint32_t>((bytes + kBlockBytes - 1) / kBlockBytes);
  if (segment.free_message == kNone || segment.free_blocks < blocks) return kNone;
  const std::uint32_t index = segment.free_message;
  Message& message = segment.messages[index];
  segment.free_message = message.next;
  message = {};
  message.next = kNone;
  message.first_block = kNone;
  for (std::uint32_t i = 0; i < blocks; ++i) {
    const std::uint32_t block = segment.free_block;
    segment.free_block = segment.block_next()[block];
    segment.block_next()[block] = message.first_block;
    message.first_block = block;
  }
  segment.free_blocks -= blocks;
  return index;
}

template <typename Copy>
void each_block(Mapped& mapped, const Message& message, Copy copy) {
  std::uint64_t done = 0;
  for (std::uint32_t block = message.first_block; block != kNone; block = mapped.segment().block_next()[block]) {
    const std::uint64_t count = std::min<std::uint64_t>(kBlockBytes, message.bytes - done);
    copy(mapped.block(block), done, count);
    done += count;
  }
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

// Tells the sender of a reliable message how it ended; an unreliable one is just gone.
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

std::uint32_t take_first(Segment& segment, QueuePairRecord& record) {
  const std::uint32_t index = record.inbox_first;
  record.inbox_first = segment.messages[index].next;
  if (record.inbox_first == kNone) record.inbox_last = kNone;
  --record.inbox_count;
  return index;
}

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

}  // namespace

std::uint64_t scramble(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

void free_message(Mapped& mapped, std::uint32_t index) {
  Segment& segment = mapped.segment();
  Message& message = segment.messages[index];
  message.next = segment.free_message;
  segment.free_message = index;
  release_blocks(mapped, message);
}

bool begin(FakeQueuePair& pair, PostedSend& send, std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  Segment& segment = mapped.segment();
  const Settings& settings = segment.settings;
  QueuePairRecord& record = record_of(pair);
  const bool reliable = pair.qp_type == abi::kQpRc;
  const std::uint32_t places = places_of(settings, send.bytes);
  const std::byte* source = bytes_of(pair, send.key, send.address, send.bytes);
  const std::uint64_t blocks = (std::uint64_t{send.bytes} + kBlockBytes - 1) / kBlockBytes;
  if (source == nullptr || blocks > segment.blocks_count) {
    const std::uint32_t status = source == nullptr ? abi::kLocalProtectionError : abi::kGeneralError;
    const std::uint64_t id = send.id;
    pair.sends.erase(pair.sends.begin() + (&send - &pair.sends.front()));
    finish(pair, false, id, status, 0, now, places);
    move_to_error(pair);
    return false;
  }
  const DeviceRecord& device = segment.devices[record.device];
  CableRecord* cable = device.cable == kNone ? nullptr : &segment.cables[device.cable];
  QueuePairRecord* remote = cable != nullptr && cable->up ? remote_of(mapped, record) : nullptr;
  if (settings.flow_control && !reliable && (remote == nullptr || remote->receives <= remote->inbox_count)) {
    send.earliest = kNever;
    return false;
  }
  std::uint32_t index = kNone;
  if (remote != nullptr) {
    index = take_message(mapped, send.bytes);
    if (index == kNone) {
      bury_the_dead(mapped);
      index = take_message(mapped, send.bytes);
    }
    if (index == kNone) {
      segment.pool_wanted = true;
      send.earliest = kNever;
      return false;
    }
  }
  // A send that had to wait begins now, others when they were posted.
  const std::uint64_t from = send.earliest == kNever ? now : send.earliest;
  send.begun = true;
  send.give_up_at = now + settings.retry_ns;
  if (cable == nullptr) {
    if (!reliable) finish(pair, false, send.id, abi::kSuccess, 0, from + flight_ns(settings, send.bytes), places);
    return true;
  }
  Direction& direction = cable->from[device.end];
  Dice dice(settings, device.cable, device.end, direction.sequence++);
  const std::uint64_t begun_at = std::max(from, direction.free_at);
  direction.free_at = begun_at + flight_ns(settings, send.bytes);
  ++direction.counters.messages;
  direction.counters.bytes += send.bytes;
  const bool told_to_lose = direction.lose_next != 0;
  if (told_to_lose) --direction.lose_next;
  const bool lost = !reliable && (dice.hits(settings.loss) || told_to_lose);
  const bool corrupt = dice.hits(settings.corrupt);
  const bool torn = dice.hits(settings.torn);
  const bool send_fails = dice.hits(settings.send_errors);
  const bool receive_fails = dice.hits(settings.receive_errors);
  const std::uint64_t flipped = dice.next();
  if (index != kNone && lost) {
    free_message(mapped, index);
    index = kNone;
    ++direction.counters.lost;
  } else if (index == kNone) {
    ++(cable->up ? direction.counters.no_receive : direction.counters.lost);
  }
  if (index != kNone) {
    Message& message = segment.messages[index];
    message.cable = device.cable;
    message.end = device.end;
    message.sender = pair.record;
    message.sender_number = record.number;
    message.packet_sequence = record.send_sequence;
    message.reliable = reliable;
    message.torn = torn;
    message.fails = receive_fails;
    message.not_ready_retries = pair.attr.rnr_retry;
    message.bytes = send.bytes;
    message.begun_at = begun_at;
    message.arrives_at = direction.free_at + settings.latency_ns;
    each_block(mapped, message, [&](std::byte* block, std::uint64_t offset, std::uint64_t count) {
      std::memcpy(block, source + offset, count);
      if (corrupt && send.bytes != 0 && flipped % send.bytes >= offset && flipped % send.bytes < offset + count) {
        block[flipped % send.bytes - offset] ^= std::byte{0x10};
      }
    });
    if (corrupt) ++direction.counters.corrupted;
    if (torn) ++direction.counters.torn;
    if (reliable) {
      send.message = index;
      send.give_up_at = message.arrives_at + settings.retry_ns;
    }
    append(mapped, *remote, index);
  }
  if (!reliable) {
    finish(pair, false, send.id, send_fails ? abi::kGeneralError : abi::kSuccess, 0, direction.free_at, places);
    if (send_fails) {
      pair.sends.pop_front();
      move_to_error(pair);
    }
  }
  return true;
}

bool arrive(FakeQueuePair& pair, std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  Segment& segment = mapped.segment();
  const Settings& settings = segment.settings;
  QueuePairRecord& record = record_of(pair);
  Message& message = segment.messages[record.inbox_first];
  CableRecord& cable = segment.cables[message.cable];
  Counters& counters = cable.from[message.end].counters;
  if (cable.cut_at != kNever && message.begun_at <= cable.cut_at && message.arrives_at >= cable.cut_at) {
    ++counters.lost;
    answer(mapped, take_first(segment, record), MessageState::kRefused, abi::kRetriesExceeded, now + settings.retry_ns);
    return true;
  }
  const bool open = record.state == abi::kReadyToReceive || record.state == abi::kReadyToSend;
  if (!open || message.packet_sequence != record.receive_sequence) {
    ++counters.no_receive;
    answer(mapped, take_first(segment, record), MessageState::kRefused, abi::kRetriesExceeded, now + settings.retry_ns);
    return true;
  }
  if (pair.receives.empty()) {
    if (message.reliable && message.state != MessageState::kAbandoned) {
      if (not_ready_until(message) > now) return false;
      answer(mapped, take_first(segment, record), MessageState::kRefused, abi::kNotReadyRetriesExceeded, now);
    } else {
      free_message(mapped, take_first(segment, record));
    }
    ++counters.no_receive;
    return true;
  }
  const std::uint32_t index = take_first(segment, record);
  const PostedReceive receive = pair.receives.front();
  pair.receives.pop_front();
  --record.receives;
  if (!covers(settings, receive.bytes, message.bytes)) {
    ++counters.length_errors;
    fail_receive(pair, index, receive, abi::kLocalLengthError, now);
    return true;
  }
  std::byte* into = bytes_of(pair, receive.key, receive.address, receive.bytes);
  if (into == nullptr || message.fails) {
    fail_receive(pair, index, receive, into == nullptr ? abi::kLocalProtectionError : abi::kGeneralError, now);
    return true;
  }
  const std::uint64_t written = message.torn ? message.bytes / 2 : message.bytes;
  each_block(mapped, message, [&](const std::byte* block, std::uint64_t offset, std::uint64_t count) {
    if (offset < written) std::memcpy(into + offset, block, std::min(count, written - offset));
  });
  ++counters.delivered;
  finish(pair, true, receive.id, abi::kSuccess, message.bytes, message.arrives_at, places_of(settings, receive.bytes));
  answer(mapped, index, MessageState::kTaken, 0, message.arrives_at + settings.latency_ns);
  return true;
}

std::uint64_t next_look(const FakeQueuePair& pair, std::uint64_t now) {
  const Message& message = mapped_of(pair).segment().messages[record_of(pair).inbox_first];
  return message.arrives_at > now ? message.arrives_at : not_ready_until(message);
}

bool can_answer(Mapped& mapped, std::uint32_t index) {
  Segment& segment = mapped.segment();
  const Message& message = segment.messages[index];
  const CableRecord& cable = segment.cables[message.cable];
  const QueuePairRecord& sender = segment.queue_pairs[message.sender];
  if (!cable.up) return false;
  const QueuePairRecord* remote = remote_of(mapped, sender);
  if (remote == nullptr) return false;
  return (remote->state == abi::kReadyToReceive || remote->state == abi::kReadyToSend) && process_lives(remote->pid);
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

void bury(Mapped& mapped, QueuePairRecord& record) {
  turn_away(mapped, record);
  record.used = false;
  record.armed = false;
  record.receives = 0;
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
