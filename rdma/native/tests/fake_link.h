#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/link.h"
#include "core/pipe.h"

// A link in memory whose faults a test chooses. Frames travel as bytes, header and payload, through a queue.
namespace fake {

enum class Fault {
  kNone,
  kCut,           // the frame arrives without its last byte, then the link ends
  kLose,          // the frame never arrives
  kDuplicate,     // the frame arrives twice
  kReorder,       // the frame arrives after its successor
  kFlipHeader,    // one bit of the header is wrong
  kFlipPayload,   // one bit of the payload is wrong
  kOversize,      // the header claims more bytes than the message has, with a right checksum
  kOtherEpoch,    // a frame of another plan, otherwise right
  kOtherSource,   // a frame of another rank
  kProbe,         // a frame of another kind
  kEnd,           // the link ends before the frame
};

// One direction: what was sent and not yet received.
class Queue {
 public:
  Queue() { mm::make_pipe(read_fd_, write_fd_, "a test"); }
  ~Queue() {
    ::close(read_fd_);
    ::close(write_fd_);
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Fault of the frame with that number, from 0.
  void set_fault(int frame, Fault fault) {
    std::lock_guard lock(mutex_);
    fault_frame_ = frame;
    fault_ = fault;
  }
  void set_capacity(std::size_t frames) { capacity_ = frames; }

  // False where the queue is full.
  bool push(mm::FrameHeader header, std::span<const std::byte> payload) {
    std::lock_guard lock(mutex_);
    if (frames_.size() >= capacity_) return false;
    Fault fault = number_++ == fault_frame_ ? fault_ : Fault::kNone;
    if (fault == Fault::kOtherEpoch) header.epoch.term += 1;
    if (fault == Fault::kOtherSource) header.source = static_cast<std::uint16_t>(header.source + 7);
    if (fault == Fault::kProbe) header.kind = mm::FrameKind::kProbe;
    if (fault == Fault::kOversize) header.message_bytes += 1;
    std::vector<std::byte> bytes(mm::kFrameHeaderBytes + payload.size());
    mm::encode_header(header, std::span<std::byte, mm::kFrameHeaderBytes>(bytes.data(), mm::kFrameHeaderBytes));
    if (!payload.empty()) std::memcpy(bytes.data() + mm::kFrameHeaderBytes, payload.data(), payload.size());
    if (fault == Fault::kFlipHeader) bytes[33] ^= std::byte{4};
    if (fault == Fault::kFlipPayload) bytes[mm::kFrameHeaderBytes + payload.size() / 2] ^= std::byte{4};
    if (fault == Fault::kCut) bytes.pop_back();
    if (fault == Fault::kEnd) ended_ = true;
    if (fault == Fault::kReorder) {
      held_ = std::move(bytes);
      return true;
    }
    if (fault != Fault::kLose && fault != Fault::kEnd) {
      if (fault == Fault::kDuplicate) frames_.push_back(bytes);
      frames_.push_back(std::move(bytes));
      if (!held_.empty()) frames_.push_back(std::move(held_));
      held_.clear();
    }
    if (fault == Fault::kCut) ended_ = true;
    ring();
    return true;
  }

  enum class State { kFrame, kEmpty, kEnded };
  // The next frame, if there is one; it stays.
  State peek(std::vector<std::byte>& bytes) {
    std::lock_guard lock(mutex_);
    if (frames_.empty()) return ended_ ? State::kEnded : State::kEmpty;
    bytes = frames_.front();
    return State::kFrame;
  }
  void pop() {
    std::lock_guard lock(mutex_);
    frames_.pop_front();
  }
  void end() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    ring();
  }
  bool ended() {
    std::lock_guard lock(mutex_);
    return ended_;
  }
  bool full() {
    std::lock_guard lock(mutex_);
    return frames_.size() >= capacity_;
  }
  [[nodiscard]] int descriptor() const { return read_fd_; }
  void clear_bell() {
    char bytes[64];
    while (::read(read_fd_, bytes, sizeof bytes) > 0) {
    }
  }

 private:
  void ring() {
    char byte = 1;
    [[maybe_unused]] auto written = ::write(write_fd_, &byte, 1);
  }

  std::mutex mutex_;
  std::deque<std::vector<std::byte>> frames_;
  std::vector<std::byte> held_;
  std::size_t capacity_ = 1000000;
  int number_ = 0;
  int fault_frame_ = -1;
  Fault fault_ = Fault::kNone;
  bool ended_ = false;
  int read_fd_ = -1;
  int write_fd_ = -1;
};

class Sender : public mm::SendHalf {
 public:
  Sender(std::shared_ptr<Queue> queue, std::size_t limit) : queue_(std::move(queue)), limit_(limit) {}
  mm::Progress try_send(const mm::FrameHeader& header, std::span<const std::byte> payload) override {
    if (queue_->ended()) return fail({mm::Code::kPeerLost, "the fake link ended"});
    return queue_->push(header, payload) ? mm::Progress::kDone : mm::Progress::kIdle;
  }
  std::size_t frame_limit(std::size_t) const override { return limit_; }
  // A full queue is looked at every millisecond: good enough for a fake.
  bool arm(std::vector<pollfd>&) override {
    ::usleep(1000);
    return false;
  }
  void disarm() override {}

 private:
  std::shared_ptr<Queue> queue_;
  std::size_t limit_;
};

class Receiver : public mm::ReceiveHalf {
 public:
  explicit Receiver(std::shared_ptr<Queue> queue) : queue_(std::move(queue)) {}
  mm::Progress try_header(mm::FrameHeader& header) override {
    switch (queue_->peek(frame_)) {
      case Queue::State::kEmpty: return mm::Progress::kIdle;
      case Queue::State::kEnded: return fail({mm::Code::kPeerLost, "the fake link ended"});
      case Queue::State::kFrame: break;
    }
    mm::Status status = mm::decode_header(
        std::span<const std::byte, mm::kFrameHeaderBytes>(frame_.data(), mm::kFrameHeaderBytes), header_);
    if (!status.ok()) return fail(status);
    header = header_;
    return mm::Progress::kDone;
  }
  mm::Progress try_payload(std::span<std::byte> into) override {
    if (frame_.size() < mm::kFrameHeaderBytes + into.size()) {
      return fail({mm::Code::kPeerLost, "the fake link ended within a frame"});
    }
    if (!into.empty()) std::memcpy(into.data(), frame_.data() + mm::kFrameHeaderBytes, into.size());
    queue_->pop();
    return mm::Progress::kDone;
  }
  bool arm(std::vector<pollfd>& descriptors) override {
    queue_->clear_bell();
    std::vector<std::byte> ignored;
    if (queue_->peek(ignored) != Queue::State::kEmpty) return false;
    descriptors.push_back({queue_->descriptor(), POLLIN, 0});
    return true;
  }
  void disarm() override {}

 private:
  std::shared_ptr<Queue> queue_;
  std::vector<std::byte> frame_;
  mm::FrameHeader header_;
};

class Link : public mm::Link {
 public:
  Link(std::shared_ptr<Queue> out, std::shared_ptr<Queue> in, std::size_t limit)
      : out_(std::move(out)), in_(std::move(in)), sender_(out_, limit), receiver_(in_) {}
  ~Link() override { abort(); }
  mm::SendHalf& sender() override { return sender_; }
  mm::ReceiveHalf& receiver() override { return receiver_; }
  std::string provider() const override { return "fake"; }
  std::size_t pool_bytes() const override { return 100; }
  void abort() override {
    out_->end();
    in_->end();
  }

 private:
  std::shared_ptr<Queue> out_;
  std::shared_ptr<Queue> in_;
  Sender sender_;
  Receiver receiver_;
};

struct Pair {
  std::shared_ptr<Queue> a_to_b = std::make_shared<Queue>();
  std::shared_ptr<Queue> b_to_a = std::make_shared<Queue>();
  std::unique_ptr<mm::Link> a;
  std::unique_ptr<mm::Link> b;
  explicit Pair(std::size_t frame_limit = 1000)
      : a(std::make_unique<Link>(a_to_b, b_to_a, frame_limit)),
        b(std::make_unique<Link>(b_to_a, a_to_b, frame_limit)) {}
};

}  // namespace fake
