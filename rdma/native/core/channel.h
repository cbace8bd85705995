#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/frame.h"
#include "core/link.h"

namespace mm {

// What a message is a part of. Mixed into the shape hash that travels, so that an all_sum is never taken for an
// all_max of the same shape. Never renumber.
enum class Operation : std::uint8_t {
  kMessage = 0,
  kAllSum = 1,
  kAllMax = 2,
  kAllMin = 3,
  kAllGather = 4,
  kSumScatter = 5,
  kSplit = 6,
  kHostLabel = 7,    // see core/parcel.h
  kHostArray = 8,
  kHostMessage = 9,  // bytes of any number
};
[[nodiscard]] std::string_view name_of(Operation operation);

// The shape hash of what only the sender knows the size of.
inline constexpr std::uint32_t kAnyShape = 0xFFFFFFFF;

// One message as its sender gives it or its receiver expects it.
struct Message {
  Dtype dtype = Dtype::kBytes;
  std::uint32_t shape_hash = 0;
  std::string shape_text;  // "(1, 3, 64)"; for errors
  Operation operation = Operation::kMessage;
};

// What travels as a frame's shape_hash: the shape's own for a plain message, mixed with the operation otherwise.
[[nodiscard]] std::uint32_t tag_of(std::uint32_t shape_hash, Operation operation);

// One lane's messages over one link: numbers them, cuts them into frames, and checks what arrives against what is
// expected (epoch, lane, ranks, sequence, dtype, shape, bytes, offsets). The halves are locked separately, so a send and
// a receive may run at once; two sends queue. A message that was not finished leaves the channel unusable: the number
// is spent and the peer waits for the rest.
//
// A frame that carries a checksum of its payload is checked against it; whether ours carry one is ours to choose.
class Channel {
 public:
  Channel(std::unique_ptr<Link> link, Epoch epoch, std::uint8_t lane, std::uint16_t self, std::uint16_t peer,
          bool checksum_payloads = false);

  // A message on its way out; made under the send lock, which it holds.
  class Sending {
   public:
    Sending(Channel& channel, const Message& message, std::span<const std::byte> payload);
    Progress progress();  // one frame at most; kDone once all are handed over
    [[nodiscard]] SendHalf& half() { return channel_.link_->sender(); }
    [[nodiscard]] const Status& failure() const { return failure_; }
    [[nodiscard]] std::uint16_t peer() const { return channel_.peer_; }

   private:
    void begin_frame();

    Channel& channel_;
    std::unique_lock<std::mutex> lock_;
    FrameHeader header_;
    std::span<const std::byte> payload_;
    std::size_t frame_limit_ = 0;
    bool done_ = false;
    Status failure_;
  };

  // A message on its way in; made under the receive lock, which it holds.
  class Receiving {
   public:
    Receiving(Channel& channel, Message expected, std::span<std::byte> into);
    // Of any size up to `most_bytes`: the first frame tells it, and `into` is resized to it.
    Receiving(Channel& channel, Message expected, std::vector<std::byte>& into, std::size_t most_bytes);
    Progress progress();  // one frame at most; kDone once the message is whole; kMismatch names what was expected
    [[nodiscard]] ReceiveHalf& half() { return channel_.link_->receiver(); }
    [[nodiscard]] const Status& failure() const { return failure_; }
    [[nodiscard]] std::uint16_t peer() const { return channel_.peer_; }

   private:
    void size_by(const FrameHeader& header);
    [[nodiscard]] Status check(const FrameHeader& header) const;
    [[nodiscard]] Status check_payload() const;

    Channel& channel_;
    std::unique_lock<std::mutex> lock_;
    Message expected_;
    std::span<std::byte> into_;
    std::vector<std::byte>* resized_ = nullptr;  // until the size is known
    std::size_t most_bytes_ = 0;
    std::uint64_t sequence_ = 0;
    std::size_t received_ = 0;
    std::size_t frame_ = 0;   // bytes of the frame that is being read
    std::uint32_t frame_checksum_ = 0;
    bool in_frame_ = false;
    bool done_ = false;
    Status failure_;
  };

  [[nodiscard]] Link& link() { return *link_; }
  [[nodiscard]] std::uint16_t peer() const { return peer_; }

 private:
  std::unique_ptr<Link> link_;
  Epoch epoch_;
  std::uint8_t lane_;
  std::uint16_t self_;
  std::uint16_t peer_;
  bool checksum_payloads_;
  std::mutex send_mutex_;
  std::mutex receive_mutex_;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
};

}  // namespace mm
