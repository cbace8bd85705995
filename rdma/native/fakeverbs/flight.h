#pragma once

#include "fakeverbs/fabric.h"

// A message from the send that begins it to the receive that it meets. All under the segment's lock.
namespace mm::fakeverbs {

[[nodiscard]] inline Mapped& mapped_of(const FakeQueuePair& pair) { return *pair.owner->own.mapped; }
[[nodiscard]] inline QueuePairRecord& record_of(const FakeQueuePair& pair) {
  return mapped_of(pair).segment().queue_pairs[pair.record];
}
[[nodiscard]] inline Segment& channel_segment(const FakeChannel& channel) {
  return static_cast<FakeContext*>(channel.context)->own.mapped->segment();
}

// Puts a send on the cable. False: it must wait for credit or for room in the pool; later ones behind it.
bool begin(FakeQueuePair& pair, PostedSend& send, std::uint64_t now);

// The first message of the pair's inbox has arrived: meets its receive or is dropped. False: it waits for a receive.
bool arrive(FakeQueuePair& pair, std::uint64_t now);

// When the first message of the inbox is to be looked at again.
std::uint64_t next_look(const FakeQueuePair& pair, std::uint64_t now);

// Whether the receiver of a message in flight is there and could still answer.
bool can_answer(Mapped& mapped, std::uint32_t message);

// Its sender no longer waits for an answer.
void abandon(Mapped& mapped, std::uint32_t message);

// Drops all messages on their way to a queue pair that takes no more.
void turn_away(Mapped& mapped, QueuePairRecord& record);

// The same, and its number is free again.
void bury(Mapped& mapped, QueuePairRecord& record);

void free_message(Mapped& mapped, std::uint32_t message);

// The earliest time at which a poll of this queue may find something.
std::uint64_t next_of(const FakeQueue& queue);

// Waits on the queue's channel begin.
void arm(FakeQueue& queue);

// A well mixed number from another.
std::uint64_t scramble(std::uint64_t value);

}  // namespace mm::fakeverbs
