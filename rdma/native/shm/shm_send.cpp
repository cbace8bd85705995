#include "shm/shm_send.h"

#include <algorithm>
#include <cstring>

#include "core/copy.h"

namespace mm::shm {

ShmSend::ShmSend(Mapping mapping, mm::Descriptor doorbell, const LinkOptions& options,
                 const std::atomic<bool>& stopped)
    : options_(options),
      stopped_(stopped),
      mapping_(std::move(mapping)),
      doorbell_(std::move(doorbell)),
      class_of_(options.max_outstanding) {
  std::fill_n(free_.begin(), options.buffer_sizes, options.num_buffers);
}

Progress ShmSend::try_send(const FrameHeader& header, std::span<const std::byte> payload) {
  if (!failure().ok()) return Progress::kFailed;
  if (stopped_.load(std::memory_order_acquire)) return fail(Status(Code::kAborted, "the link was aborted"));
  if (payload.size() != header.frame_bytes || payload.size() > options_.largest_buffer_bytes()) {
    return fail(Status(Code::kLocal, "a frame of " + std::to_string(header.frame_bytes) + " bytes was given " +
                                         std::to_string(payload.size()) + "; the largest buffer has " +
                                         std::to_string(options_.largest_buffer_bytes())));
  }
  if (doorbell_.ended()) return fail(Status(Code::kPeerLost, "the peer closed the link"));
  waiting_bytes_ = payload.size();
  if (!has_room()) {
    if (!reclaim()) return fail(Status(Code::kCorrupt, "the peer's count of frames it read is impossible"));
    if (!has_room()) return Progress::kIdle;
  }
  const auto size_class = static_cast<std::uint32_t>(free_class(payload.size()));
  const std::uint32_t slot = next_slot_[size_class];
  const Layout& layout = mapping_.layout();
  copy_bytes(mapping_.at(layout.buffer_at(size_class, slot)), payload.data(), payload.size());
  auto* descriptor = reinterpret_cast<FrameSlot*>(mapping_.at(layout.descriptor_at(next_descriptor_)));
  encode_header(header, std::span<std::byte, kFrameHeaderBytes>(descriptor->header));
  descriptor->size_class = size_class;
  descriptor->slot = slot;

  class_of_[next_descriptor_] = static_cast<std::uint8_t>(size_class);
  if (++next_descriptor_ == options_.max_outstanding) next_descriptor_ = 0;
  --free_[size_class];
  next_slot_[size_class] = slot + 1 == options_.num_buffers ? 0 : slot + 1;
  ++published_;
  // Sequentially consistent with the receiver's arm: either it sees the frame or we see that it sleeps.
  Control& control = mapping_.control();
  control.published.store(published_, std::memory_order_seq_cst);
  if (control.receiver_sleeping.load(std::memory_order_seq_cst) != 0 &&
      control.receiver_sleeping.exchange(0, std::memory_order_seq_cst) != 0) {
    doorbell_.ring();
  }
  return Progress::kDone;
}

std::size_t ShmSend::frame_limit(std::size_t message_bytes) const {
  // Several frames in flight let the peer copy out while we copy in, and smaller buffers stay in the caches. A message
  // that fits a buffer of the smallest class is one frame.
  constexpr std::size_t kFramesOfMessage = 8;
  constexpr std::size_t kMostFrameBytes = std::size_t{256} << 10;
  std::size_t limit = options_.frame_bytes;
  const std::size_t most = std::min(options_.largest_buffer_bytes(), kMostFrameBytes);
  while (limit * 2 <= most && limit * kFramesOfMessage < message_bytes) limit *= 2;
  return limit;
}

int ShmSend::free_class(std::size_t bytes) const {
  // Never a larger one: a sender that runs ahead through all buffers leaves the caches (measured: half the bandwidth).
  std::uint32_t k = 0;
  while (bytes > mapping_.layout().class_bytes(k)) ++k;
  return free_[k] > 0 ? static_cast<int>(k) : -1;
}

bool ShmSend::has_room() const {
  return published_ - consumed_ < options_.max_outstanding && free_class(waiting_bytes_) >= 0;
}

bool ShmSend::reclaim() {
  const std::uint64_t consumed = mapping_.control().consumed.load(std::memory_order_seq_cst);
  if (consumed - consumed_ > published_ - consumed_) return false;
  for (; consumed_ != consumed; ++consumed_) {
    ++free_[class_of_[oldest_descriptor_]];
    if (++oldest_descriptor_ == options_.max_outstanding) oldest_descriptor_ = 0;
  }
  return true;
}

bool ShmSend::arm(std::vector<pollfd>& descriptors) {
  if (!failure().ok() || stopped_.load(std::memory_order_acquire) || doorbell_.ended()) return false;
  Control& control = mapping_.control();
  control.sender_sleeping.store(1, std::memory_order_seq_cst);
  if (has_room() || !reclaim() || has_room()) {
    control.sender_sleeping.store(0, std::memory_order_seq_cst);
    return false;
  }
  doorbell_.arm(descriptors);
  return true;
}

void ShmSend::disarm() {
  mapping_.control().sender_sleeping.store(0, std::memory_order_seq_cst);
  doorbell_.drain();
}

}  // namespace mm::shm
