// The blocks that messages in flight lie in.

#include "fakeverbs/flight.h"

namespace mm::fakeverbs {

std::uint32_t take_message(Mapped& mapped, std::uint64_t bytes) {
  Segment& segment = mapped.segment();
  const auto blocks = static_cast<std::uint32_t>(blocks_of(bytes));
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

void free_message(Mapped& mapped, std::uint32_t index) {
  Segment& segment = mapped.segment();
  Message& message = segment.messages[index];
  message.next = segment.free_message;
  segment.free_message = index;
  release_blocks(mapped, message);
}

}  // namespace mm::fakeverbs
