#pragma once

#include <array>
#include <atomic>
#include <vector>

#include "core/link.h"
#include "shm/doorbell.h"
#include "shm/mapping.h"

namespace mm::shm {

class ShmSend final : public SendHalf {
 public:
  ShmSend(Mapping mapping, mm::Descriptor doorbell, const LinkOptions& options, const std::atomic<bool>& stopped);

  Progress try_send(const FrameHeader& header, std::span<const std::byte> payload) override;
  [[nodiscard]] std::size_t frame_limit(std::size_t message_bytes) const override;
  bool arm(std::vector<pollfd>& descriptors) override;
  void disarm() override;

  Doorbell& doorbell() { return doorbell_; }

 private:
  // A free buffer's class for so many bytes, or -1 where there is none now.
  [[nodiscard]] int free_class(std::size_t bytes) const;
  [[nodiscard]] bool has_room() const;
  // Takes back what the peer has read. False: the peer's counter is impossible.
  bool reclaim();

  LinkOptions options_;
  const std::atomic<bool>& stopped_;
  Mapping mapping_;
  Doorbell doorbell_;
  std::uint64_t published_ = 0;  // ours is the truth; what is shared only tells the peer
  std::uint64_t consumed_ = 0;   // as far as we have seen
  std::vector<std::uint8_t> class_of_;  // of the frames in flight, by descriptor
  std::array<std::uint32_t, LinkOptions::kMostBufferSizes> free_{};
  std::array<std::uint32_t, LinkOptions::kMostBufferSizes> next_slot_{};
  std::uint32_t next_descriptor_ = 0;
  std::uint32_t oldest_descriptor_ = 0;
  std::size_t waiting_bytes_ = 0;  // payload of the frame that found no room
};

}  // namespace mm::shm
