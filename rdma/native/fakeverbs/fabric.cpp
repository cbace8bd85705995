#include "fakeverbs/fabric.h"

#include <algorithm>
#include <cstring>

#include "fakeverbs/flight.h"

namespace mm::fakeverbs {
namespace {

// When the channel's descriptor must wake: what the earliest of its armed queues waits for.
void aim(FakeChannel& channel) {
  const Segment& segment = channel_segment(channel);
  std::uint64_t earliest = kNever;
  for (FakeQueue* queue : channel.queues) {
    if (queue->armed) earliest = std::min(earliest, next_of(*queue));
  }
  constexpr std::uint64_t kLongAgo = 1;
  std::uint64_t at = 0;
  if (earliest <= fabric_now(segment)) {
    at = kLongAgo;
  } else if (earliest != kNever && !segment.settings.manual_clock) {  // whoever moves that clock wakes everybody
    at = static_cast<std::uint64_t>(segment.epoch_ns) + earliest * segment.settings.slowdown;
  }
  channel.waiter->set_timer(at);
}

// Completes what a reliable send was answered, or gives it up. False: the first one still waits.
bool finish_answered(FakeQueuePair& pair, std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  PostedSend& send = pair.sends.front();
  const std::uint32_t places = places_of(mapped.segment().settings, send.bytes);
  if (send.message != kNone) {
    Message& message = mapped.segment().messages[send.message];
    if (message.state != MessageState::kFlying) {
      if (message.answered_at > now) return false;
      const std::uint32_t status = message.state == MessageState::kTaken ? abi::kSuccess : message.refusal;
      finish(pair, false, send.id, status, 0, message.answered_at, places);
      free_message(mapped, send.message);
      pair.sends.pop_front();
      if (status != abi::kSuccess) move_to_error(pair);
      return true;
    }
  }
  if (send.give_up_at > now) return false;
  if (send.message != kNone && can_answer(mapped, send.message)) {
    send.give_up_at = now + mapped.segment().settings.retry_ns;
    return false;
  }
  if (send.message != kNone) mapped.segment().messages[send.message].state = MessageState::kAbandoned;
  finish(pair, false, send.id, abi::kRetriesExceeded, 0, now, places);
  pair.sends.pop_front();
  move_to_error(pair);
  return true;
}

std::uint64_t next_of_sends(const FakeQueuePair& pair) {
  if (pair.sends.empty() || !pair.sends.front().begun) return kNever;
  const PostedSend& send = pair.sends.front();
  if (send.message == kNone) return send.give_up_at;
  const Message& message = mapped_of(pair).segment().messages[send.message];
  return message.state == MessageState::kFlying ? send.give_up_at : message.answered_at;
}

}  // namespace

std::byte* bytes_of(const FakeQueuePair& pair, std::uint32_t key, std::uint64_t address, std::uint64_t bytes) {
  const auto found = pair.owner->regions.find(key);
  if (found == pair.owner->regions.end()) return nullptr;
  const auto start = reinterpret_cast<std::uintptr_t>(found->second->addr);
  if (address < start || address - start > found->second->length) return nullptr;
  if (bytes > found->second->length - (address - start)) return nullptr;
  return reinterpret_cast<std::byte*>(address);
}

std::uint64_t scramble(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

std::uint64_t next_of(const FakeQueue& queue) {
  std::uint64_t earliest = queue.next_ready;
  for (const FakeQueuePair* pair : queue.pairs) {
    earliest = std::min(earliest, record_of(*pair).attention.load(std::memory_order_acquire));
  }
  return earliest;
}

void arm(FakeQueue& queue) {
  queue.armed = true;
  for (FakeQueuePair* pair : queue.pairs) {
    QueuePairRecord& record = record_of(*pair);
    record.armed = true;
    record.channel = queue.waits_on->number;
  }
  aim(*queue.waits_on);
}

void finish(FakeQueuePair& pair, bool receive, std::uint64_t id, std::uint32_t status, std::uint32_t bytes,
            std::uint64_t at, std::uint32_t places) {
  const Settings& settings = mapped_of(pair).segment().settings;
  FakeQueue& queue = of(receive ? pair.recv_cq : pair.send_cq);
  if (settings.jitter_ns != 0 && status == abi::kSuccess) {
    at += scramble(settings.seed ^ (std::uint64_t{pair.qp_num} << 32) ^ (id << 1) ^ (receive ? 1 : 0) ^ at) %
          (settings.jitter_ns + 1);
  }
  at = pair.last_ready[receive] = std::max(at, pair.last_ready[receive]);
  Finished finished;
  finished.wc = {};
  finished.wc.wr_id = id;
  finished.wc.status = status;
  finished.wc.opcode = receive ? abi::kWcReceive : abi::kWcSend;
  finished.wc.byte_len = bytes;
  finished.wc.qp_num = pair.qp_num;
  finished.ready_at = at;
  finished.pair = &pair;
  finished.places = places;
  queue.finished.push_back(finished);
  if (queue.finished.size() > static_cast<std::size_t>(queue.cqe)) queue.overrun = true;
  queue.next_ready = std::min(queue.next_ready.load(), at);
  if (queue.armed) aim(*queue.waits_on);
}

void progress(FakeQueuePair& pair) {
  Mapped& mapped = mapped_of(pair);
  Segment& segment = mapped.segment();
  QueuePairRecord& record = record_of(pair);
  const std::uint64_t now = fabric_now(segment);
  // Arrivals first: what is met and answered by them may let sends finish.
  while (record.inbox_first != kNone && segment.messages[record.inbox_first].arrives_at <= now) {
    if (!arrive(pair, now)) break;
  }
  const bool reliable = pair.qp_type == abi::kQpRc;
  if (record.state == abi::kReadyToSend) {
    for (std::size_t i = 0; i < pair.sends.size() && record.state == abi::kReadyToSend;) {
      if (!pair.sends[i].begun && !begin(pair, pair.sends[i], now)) break;
      if (record.state != abi::kReadyToSend) break;
      if (reliable) {
        ++i;
      } else {
        pair.sends.pop_front();  // an unreliable send is finished once it has begun
      }
    }
  }
  while (reliable && !pair.sends.empty() && pair.sends.front().begun && finish_answered(pair, now)) {
  }
  std::uint64_t next = next_of_sends(pair);
  if (record.inbox_first != kNone) next = std::min(next, next_look(pair, now));
  record.attention.store(next, std::memory_order_release);
  for (abi::Cq* queue : {pair.send_cq, pair.recv_cq}) {
    if (of(queue).armed) aim(*of(queue).waits_on);
  }
}

void move_to_error(FakeQueuePair& pair) {
  Mapped& mapped = mapped_of(pair);
  QueuePairRecord& record = record_of(pair);
  const std::uint64_t now = fabric_now(mapped.segment());
  record.state = pair.state = abi::kError;
  for (const PostedSend& send : pair.sends) {
    if (send.message != kNone) abandon(mapped, send.message);
    finish(pair, false, send.id, abi::kFlushed, 0, now, places_of(mapped.segment().settings, send.bytes));
  }
  for (const PostedReceive& receive : pair.receives) {
    finish(pair, true, receive.id, abi::kFlushed, 0, now, places_of(mapped.segment().settings, receive.bytes));
  }
  pair.sends.clear();
  pair.receives.clear();
  record.receives = 0;
  turn_away(mapped, record);
}

void rouse(Mapped& mapped, QueuePairRecord& record, std::uint64_t at) {
  record.attention.store(std::min(record.attention.load(), at), std::memory_order_release);
  if (record.armed) {
    record.armed = false;
    knock(mapped.name(), record.channel);
  }
}

void rouse_all(Mapped& mapped) {
  for (QueuePairRecord& record : mapped.segment().queue_pairs) {
    if (record.used) rouse(mapped, record, 0);
  }
}

std::uint32_t places_of(const Settings& settings, std::uint64_t bytes) {
  if (settings.frame_bytes == 0 || bytes == 0) return 1;
  return static_cast<std::uint32_t>((bytes + settings.frame_bytes - 1) / settings.frame_bytes);
}

abi::Gid gid_of(const Segment& segment, std::uint32_t device, int index) {
  abi::Gid gid{};
  const auto high = static_cast<std::uint8_t>(device >> 8);
  const auto low = static_cast<std::uint8_t>(device + 1);
  if (index == 1) {
    if (!segment.settings.addresses) return gid;
    // The interfaces at both ends of a cable are a network of their own, and those without one are alone in theirs.
    const DeviceRecord& record = segment.devices[device];
    const bool plugged = record.cable != kNone;
    const auto network = static_cast<std::uint8_t>(plugged ? record.cable : device);
    const auto number = static_cast<std::uint8_t>(plugged ? record.end + 1 : 1);
    const auto kind = static_cast<std::uint8_t>(plugged ? 99 : 98);
    const std::uint8_t mapped[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, kind, network, number};
    std::memcpy(gid.raw, mapped, sizeof mapped);
    return gid;
  }
  const auto which = static_cast<std::uint8_t>(index);
  const std::uint8_t local[] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, which, 0, 0xff, 0xfe, 0x99, high, low};
  std::memcpy(gid.raw, local, sizeof local);
  return gid;
}

}  // namespace mm::fakeverbs
