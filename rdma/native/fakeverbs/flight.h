#pragma once

#include <algorithm>

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

// departure.cpp

// Puts a send on the cable. False: it must wait for credit or for room in the pool and those behind it too, or it
// failed and the pair is in the error state.
bool begin(FakeQueuePair& pair, PostedSend& send, std::uint64_t now);

// arrival.cpp

// The first message of the pair's inbox has arrived: meets its receive or is dropped. False: it waits for a receive.
bool arrive(FakeQueuePair& pair, std::uint64_t now);

// When the first message of the inbox is to be looked at again.
std::uint64_t next_look(const FakeQueuePair& pair, std::uint64_t now);

// inbox.cpp

// The queue pair that a pair is connected to, where it is at the other end of the pair's cable; else null.
QueuePairRecord* remote_of(Mapped& mapped, const QueuePairRecord& record);

// Whether the receiver of a message in flight is there and could still answer.
bool can_answer(Mapped& mapped, std::uint32_t message);

void append(Mapped& mapped, QueuePairRecord& remote, std::uint32_t message);
std::uint32_t take_first(Segment& segment, QueuePairRecord& record);

// Tells the sender of a reliable message how it ended; an unreliable one is just gone.
void answer(Mapped& mapped, std::uint32_t message, MessageState state, std::uint32_t refusal, std::uint64_t at);

// Its sender no longer waits for an answer.
void abandon(Mapped& mapped, std::uint32_t message);

// Drops all messages on their way to a queue pair that takes no more.
void turn_away(Mapped& mapped, QueuePairRecord& record);

// pool.cpp

// A message with room for so many bytes; kNone where the pool has none.
std::uint32_t take_message(Mapped& mapped, std::uint64_t bytes);
void release_blocks(Mapped& mapped, Message& message);
void free_message(Mapped& mapped, std::uint32_t message);

[[nodiscard]] inline std::uint64_t blocks_of(std::uint64_t bytes) { return (bytes + kBlockBytes - 1) / kBlockBytes; }

template <typename Copy>
void each_block(Mapped& mapped, const Message& message, Copy copy) {
  std::uint64_t done = 0;
  for (std::uint32_t block = message.first_block; block != kNone; block = mapped.segment().block_next()[block]) {
    const std::uint64_t count = std::min<std::uint64_t>(kBlockBytes, message.bytes - done);
    copy(mapped.block(block), done, count);
    done += count;
  }
}

// fabric.cpp

// The local bytes of a request; null where the key does not cover them.
std::byte* bytes_of(const FakeQueuePair& pair, std::uint32_t key, std::uint64_t address, std::uint64_t bytes);

// The earliest time at which a poll of this queue may find something.
std::uint64_t next_of(const FakeQueue& queue);

// Waits on the queue's channel begin.
void arm(FakeQueue& queue);

// A well mixed number from another.
std::uint64_t scramble(std::uint64_t value);

}  // namespace mm::fakeverbs
