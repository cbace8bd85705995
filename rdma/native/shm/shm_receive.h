#pragma once

#include <array>
#include <atomic>
#include <vector>

#include "core/link.h"
#include "shm/doorbell.h"
#include "shm/mapping.h"

namespace mm::shm {

// Reads what the peer wrote and trusts none of it: every number is taken out of the shared memory once, then checked.
class ShmReceive final : public ReceiveHalf {
 public:
  ShmReceive(Mapping mapping, mm::Descriptor doorbell, const LinkOptions& options, const std::atomic<bool>& stopped);

  Progress try_header(FrameHeader& header) override;
  Progress try_payload(std::span<std::byte> into) override;
  bool arm(std::vector<pollfd>& descriptors) override;
  void disarm() override;

  Doorbell& doorbell() { return doorbell_; }

 private:
  Progress read_descriptor();

  LinkOptions options_;
  const std::atomic<bool>& stopped_;
  Mapping mapping_;
  Doorbell doorbell_;
  std::uint64_t consumed_ = 0;  // ours is the truth
  std::uint64_t published_ = 0;  // as far as we have seen
  std::uint32_t next_descriptor_ = 0;
  std::array<std::uint32_t, LinkOptions::kMostBufferSizes> next_slot_{};
  FrameHeader header_;
  std::uint32_t size_class_ = 0;  // of the frame whose header was given
  std::uint32_t slot_ = 0;
  bool in_frame_ = false;
};

}  // namespace mm::shm
