#include "shm/shm_receive.h"

#include <cstring>

#include "core/copy.h"

namespace mm::shm {

ShmReceive::ShmReceive(Mapping mapping, mm::Descriptor doorbell, const LinkOptions& options,
                       const std::atomic<bool>& stopped)
    : options_(options), stopped_(stopped), mapping_(std::move(mapping)), doorbell_(std::move(doorbell)) {}

Progress ShmReceive::try_header(FrameHeader& header) {
  if (!failure().ok()) return Progress::kFailed;
  if (stopped_.load(std::memory_order_acquire)) return fail(Status(Code::kAborted, "the link was aborted"));
  if (!in_frame_) {
    if (published_ == consumed_) {
      // The end is looked at first: what was published before it is still read.
      const bool ended = doorbell_.ended();
      published_ = mapping_.control().published.load(std::memory_order_acquire);
      if (published_ - consumed_ > options_.max_outstanding) {
        return fail(Status(Code::kCorrupt, "the peer's count of frames it sent is impossible"));
      }
      if (published_ == consumed_) {
        if (ended) return fail(Status(Code::kPeerLost, "the peer closed the link"));
        return Progress::kIdle;
      }
    }
    if (read_descriptor() == Progress::kFailed) return Progress::kFailed;
    in_frame_ = true;
  }
  header = header_;
  return Progress::kDone;
}

Progress ShmReceive::read_descriptor() {
  FrameSlot descriptor;
  std::memcpy(&descriptor, mapping_.at(mapping_.layout().descriptor_at(next_descriptor_)), sizeof descriptor);
  const auto bytes = std::span<const std::byte, kFrameHeaderBytes>(descriptor.header);
  if (Status status = decode_header(bytes, header_); !status.ok()) return fail(std::move(status));
  if (descriptor.size_class >= options_.buffer_sizes ||
      header_.frame_bytes > mapping_.layout().class_bytes(descriptor.size_class)) {
    return fail(Status(Code::kCorrupt, "a frame of " + std::to_string(header_.frame_bytes) +
                                           " bytes in a buffer of class " + std::to_string(descriptor.size_class)));
  }
  if (descriptor.slot != next_slot_[descriptor.size_class]) {
    return fail(Status(Code::kCorrupt, "a frame in buffer " + std::to_string(descriptor.slot) + " of class " +
                                           std::to_string(descriptor.size_class) + ", expected buffer " +
                                           std::to_string(next_slot_[descriptor.size_class])));
  }
  size_class_ = descriptor.size_class;
  slot_ = descriptor.slot;
  return Progress::kDone;
}

Progress ShmReceive::try_payload(std::span<std::byte> into) {
  if (!failure().ok()) return Progress::kFailed;
  if (stopped_.load(std::memory_order_acquire)) return fail(Status(Code::kAborted, "the link was aborted"));
  if (!in_frame_ || into.size() != header_.frame_bytes) {
    return fail(Status(Code::kLocal, "room for " + std::to_string(into.size()) + " bytes was given to a frame of " +
                                         std::to_string(in_frame_ ? header_.frame_bytes : 0)));
  }
  copy_bytes(into.data(), mapping_.at(mapping_.layout().buffer_at(size_class_, slot_)), into.size());
  in_frame_ = false;
  next_slot_[size_class_] = slot_ + 1 == options_.num_buffers ? 0 : slot_ + 1;
  if (++next_descriptor_ == options_.max_outstanding) next_descriptor_ = 0;
  ++consumed_;
  // Sequentially consistent with the sender's arm, as in try_send.
  Control& control = mapping_.control();
  control.consumed.store(consumed_, std::memory_order_seq_cst);
  if (control.sender_sleeping.load(std::memory_order_seq_cst) != 0 &&
      control.sender_sleeping.exchange(0, std::memory_order_seq_cst) != 0) {
    doorbell_.ring();
  }
  return Progress::kDone;
}

bool ShmReceive::arm(std::vector<pollfd>& descriptors) {
  if (!failure().ok() || stopped_.load(std::memory_order_acquire) || doorbell_.ended() || in_frame_ ||
      published_ != consumed_) {
    return false;
  }
  Control& control = mapping_.control();
  control.receiver_sleeping.store(1, std::memory_order_seq_cst);
  if (control.published.load(std::memory_order_seq_cst) != consumed_) {
    control.receiver_sleeping.store(0, std::memory_order_seq_cst);
    return false;
  }
  doorbell_.arm(descriptors);
  return true;
}

void ShmReceive::disarm() {
  mapping_.control().receiver_sleeping.store(0, std::memory_order_seq_cst);
  doorbell_.drain();
}

}  // namespace mm::shm
