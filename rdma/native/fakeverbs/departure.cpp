// A send begins: its fate is drawn, and its bytes go on the cable.

#include <algorithm>
#include <cstring>

#include "fakeverbs/flight.h"

namespace mm::fakeverbs {
namespace {

std::uint64_t flight_ns(const Settings& settings, std::uint64_t bytes) {
  if (settings.bytes_per_second == 0) return 0;
  return static_cast<std::uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(settings.bytes_per_second));
}

// What happens to one message: drawn from the seed and its number, so that a run can be had again.
struct Fate {
  Fate(const Settings& settings, std::uint32_t cable, std::uint32_t end, std::uint64_t sequence)
      : state(scramble(settings.seed ^ scramble((std::uint64_t{cable} << 1 | end) ^ scramble(sequence + 1)))),
        lost(hits(settings.loss)),
        corrupt(hits(settings.corrupt)),
        torn(hits(settings.torn)),
        send_fails(hits(settings.send_errors)),
        receive_fails(hits(settings.receive_errors)),
        which_byte(next()) {}

  std::uint64_t next() { return state = scramble(state); }
  bool hits(double share) { return static_cast<double>(next() >> 11) * 0x1p-53 < share; }

  std::uint64_t state;
  bool lost;
  bool corrupt;
  bool torn;
  bool send_fails;
  bool receive_fails;
  std::uint64_t which_byte;
};

// Room for a message, also where only the dead hold some; kNone where there is none.
std::uint32_t find_room(Mapped& mapped, std::uint64_t bytes) {
  const std::uint32_t index = take_message(mapped, bytes);
  if (index != kNone) return index;
  bury_the_dead(mapped);
  return take_message(mapped, bytes);
}

// The send completes at once with an error, which ends the connection.
void fail_send(FakeQueuePair& pair, const PostedSend& send, std::uint32_t status, std::uint64_t now) {
  const std::uint64_t id = send.id;
  const std::uint32_t places = places_of(mapped_of(pair).segment().settings, send.bytes);
  pair.sends.erase(pair.sends.begin() + (&send - &pair.sends.front()));
  finish(pair, false, id, status, 0, now, places);
  move_to_error(pair);
}

void copy_in(Mapped& mapped, const Message& message, const std::byte* source, const Fate& fate) {
  const std::uint64_t flipped = fate.corrupt && message.bytes != 0 ? fate.which_byte % message.bytes : kNever;
  each_block(mapped, message, [&](std::byte* block, std::uint64_t offset, std::uint64_t count) {
    std::memcpy(block, source + offset, count);
    if (flipped >= offset && flipped - offset < count) block[flipped - offset] ^= std::byte{0x10};
  });
}

}  // namespace

bool begin(FakeQueuePair& pair, PostedSend& send, std::uint64_t now) {
  Mapped& mapped = mapped_of(pair);
  Segment& segment = mapped.segment();
  const Settings& settings = segment.settings;
  QueuePairRecord& record = record_of(pair);
  const bool reliable = pair.qp_type == abi::kQpRc;
  const std::byte* source = bytes_of(pair, send.key, send.address, send.bytes);
  if (source == nullptr || blocks_of(send.bytes) > segment.blocks_count) {
    fail_send(pair, send, source == nullptr ? abi::kLocalProtectionError : abi::kGeneralError, now);
    return false;
  }
  const DeviceRecord& device = segment.devices[record.device];
  CableRecord* cable = device.cable == kNone ? nullptr : &segment.cables[device.cable];
  QueuePairRecord* remote = cable != nullptr && cable->up ? remote_of(mapped, record) : nullptr;
  // A send that had to wait begins when it can, others began when they were posted.
  if (settings.flow_control && !reliable && (remote == nullptr || remote->receives <= remote->inbox_count)) {
    send.earliest = kNever;
    return false;
  }
  std::uint32_t index = kNone;
  if (remote != nullptr && (index = find_room(mapped, send.bytes)) == kNone) {
    segment.pool_wanted = true;
    send.earliest = kNever;
    return false;
  }
  std::uint64_t left_at = (send.earliest == kNever ? now : send.earliest);
  send.begun = true;
  send.give_up_at = now + settings.retry_ns;
  bool fails = false;
  if (cable == nullptr) {
    left_at += flight_ns(settings, send.bytes);
  } else {
    Direction& direction = cable->from[device.end];
    const Fate fate(settings, device.cable, device.end, direction.sequence++);
    const std::uint64_t begun_at = std::max(left_at, direction.free_at);
    left_at = direction.free_at = begun_at + flight_ns(settings, send.bytes);
    fails = fate.send_fails && !reliable;
    Counters& counters = direction.counters;
    ++counters.messages;
    counters.bytes += send.bytes;
    const bool told_to_lose = direction.lose_next != 0 && !reliable;
    if (told_to_lose) --direction.lose_next;
    if (index == kNone) {
      ++(cable->up ? counters.no_receive : counters.lost);
    } else if (!reliable && (fate.lost || told_to_lose)) {
      free_message(mapped, index);
      ++counters.lost;
    } else {
      Message& message = segment.messages[index];
      message.cable = device.cable;
      message.end = device.end;
      message.sender = pair.record;
      message.sender_number = record.number;
      message.packet_sequence = record.send_sequence;
      message.reliable = reliable;
      message.torn = fate.torn;
      message.fails = fate.receive_fails;
      message.not_ready_retries = pair.attr.rnr_retry;
      message.bytes = send.bytes;
      message.begun_at = begun_at;
      message.arrives_at = left_at + settings.latency_ns;
      copy_in(mapped, message, source, fate);
      counters.corrupted += fate.corrupt ? 1 : 0;
      counters.torn += fate.torn ? 1 : 0;
      if (reliable) {
        send.message = index;
        send.give_up_at = message.arrives_at + settings.retry_ns;
      }
      append(mapped, *remote, index);
    }
  }
  if (reliable) return true;  // its answer finishes it
  if (fails) {
    fail_send(pair, send, abi::kGeneralError, left_at);
    return false;
  }
  finish(pair, false, send.id, abi::kSuccess, 0, left_at, places_of(settings, send.bytes));
  return true;
}

}  // namespace mm::fakeverbs
