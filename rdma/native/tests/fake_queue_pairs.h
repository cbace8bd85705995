#pragma once

#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "core/pipe.h"
#include "verbs/queue_pair.h"

// Queue pairs within one process, with the semantics of UC and RC, and with faults. Each cable has two ends.
namespace fake_verbs {

using namespace mm;
using namespace mm::verbs;

struct Faults {
  double loss = 0;       // of UC messages
  double altered = 0;    // header bytes flipped
  double torn = 0;       // the end never written, though the completion says so
  double late = 0;       // a poll delivers nothing of what came; so queues overtake each other
  bool events = true;    // wait descriptors
  std::uint32_t seed = 1;
  std::uint32_t refuse_beyond = UINT32_MAX;  // queue pairs of a device, whatever its limits say
};

inline Limits ample() { return {1000, 1000, 16384, 16384, 65536, 1U << 30, std::uint64_t{1} << 40, 0}; }

class FakeQueuePair;

// What both ends share; all under its lock.
struct Wire {
  std::mutex mutex;
  Faults faults;
  std::mt19937 random;
  std::map<std::uint32_t, FakeQueuePair*> queue_pairs;
  std::uint32_t next_number = 1;
  bool cut = false;          // nothing passes, in silence where it is UC
  bool blocked = false;      // the same, but the ports stay active
  std::uint64_t messages = 0;
  std::uint64_t dropped = 0;      // by loss
  std::uint64_t unexpected = 0;   // for want of a receive
  std::uint64_t region_count = 0;  // alive

  explicit Wire(const Faults& wanted = {}) : faults(wanted), random(wanted.seed) {}
  [[nodiscard]] bool strikes(double probability) {
    return probability > 0 && std::uniform_real_distribution<>(0, 1)(random) < probability;
  }
};

class FakeRegion final : public Region {
 public:
  FakeRegion(std::shared_ptr<Wire> wire, std::span<std::byte> memory) : wire_(std::move(wire)), memory_(memory) {
    const std::lock_guard lock(wire_->mutex);
    ++wire_->region_count;
  }
  ~FakeRegion() override {
    const std::lock_guard lock(wire_->mutex);
    --wire_->region_count;
  }
  [[nodiscard]] std::span<std::byte> memory() const override { return memory_; }

 private:
  std::shared_ptr<Wire> wire_;
  std::span<std::byte> memory_;
};

class FakeQueuePair final : public QueuePair {
 public:
  FakeQueuePair(std::shared_ptr<Wire> wire, std::span<std::byte> memory, const QueueShape& shape,
                std::uint32_t frame_bytes, std::uint32_t& living)
      : wire_(std::move(wire)), memory_(memory), shape_(shape), frame_bytes_(frame_bytes), living_(living) {
    const std::lock_guard lock(wire_->mutex);
    number_ = wire_->next_number++;
    wire_->queue_pairs[number_] = this;
    ++living_;
    if (wire_->faults.events) make_pipe(read_fd_, write_fd_, "a fake completion channel");
  }
  ~FakeQueuePair() override {
    {
      const std::lock_guard lock(wire_->mutex);
      wire_->queue_pairs.erase(number_);
      --living_;
    }
    if (read_fd_ >= 0) {
      ::close(read_fd_);
      ::close(write_fd_);
    }
  }

  [[nodiscard]] Address address() const override {
    Address address;
    address.queue_pair_number = number_;
    return address;
  }
  Status connect(const Address& remote) override {
    const std::lock_guard lock(wire_->mutex);
    if (wire_->cut) return Status(Code::kLocal, "ready to receive: the port is down (errno 100)");
    remote_ = remote.queue_pair_number;
    return {};
  }

  Status post_receive(std::uint64_t id, std::size_t offset, std::uint32_t bytes) override {
    const std::lock_guard lock(wire_->mutex);
    if (remote_ == 0 || dead_) return Status(Code::kLocal, "not connected");
    if (receives_.size() >= shape_.receive_requests) return Status(Code::kLocal, "the receive queue is full");
    if (offset + bytes > memory_.size()) return Status(Code::kLocal, "outside of the region");
    receives_.push_back({id, offset, bytes});
    return {};
  }

  Status post_send(std::uint64_t id, std::size_t offset, std::uint32_t bytes) override {
    const std::lock_guard lock(wire_->mutex);
    if (remote_ == 0 || dead_) return Status(Code::kLocal, "not connected");
    if (sends_ >= shape_.send_requests) return Status(Code::kLocal, "the send queue is full");
    if (offset + bytes > memory_.size() || bytes > shape_.message_bytes) return Status(Code::kLocal, "out of range");
    ++sends_;
    ++wire_->messages;
    const bool passes = !wire_->cut && !wire_->blocked;
    const bool reliable = shape_.mode == Mode::kRC;
    complete({id, false, passes || !reliable, passes || !reliable ? 0U : 12U, 0});
    if (!passes) return {};
    if (!reliable && wire_->strikes(wire_->faults.loss)) {
      ++wire_->dropped;
      return {};
    }
    const auto there = wire_->queue_pairs.find(remote_);
    if (there == wire_->queue_pairs.end() || there->second->dead_) return {};
    const auto from = memory_.subspan(offset, bytes);
    if (wire_->faults.late > 0 || !there->second->inbox_.empty()) {
      there->second->inbox_.emplace_back(from.begin(), from.end());
      there->second->wake();
    } else {
      there->second->deliver(from);
    }
    return {};
  }

  std::size_t poll(std::span<Completion> into) override {
    const std::lock_guard lock(wire_->mutex);
    while (!inbox_.empty() && !wire_->strikes(wire_->faults.late)) {
      deliver(inbox_.front());
      inbox_.pop_front();
    }
    std::size_t count = 0;
    while (count < into.size() && !done_.empty()) {
      into[count] = done_.front();
      if (!into[count].receive) --sends_;
      done_.pop_front();
      ++count;
    }
    return count;
  }

  [[nodiscard]] Status failure() const override { return {}; }
  [[nodiscard]] int wait_descriptor() const override { return read_fd_; }
  bool arm() override {
    const std::lock_guard lock(wire_->mutex);
    if (read_fd_ < 0 || !done_.empty() || !inbox_.empty()) return false;
    char bytes[16];
    while (::read(read_fd_, bytes, sizeof bytes) > 0) {
    }
    armed_ = true;
    return true;
  }
  std::size_t drain(double) override {
    const std::lock_guard lock(wire_->mutex);
    dead_ = true;
    receives_.clear();
    done_.clear();
    inbox_.clear();
    sends_ = 0;
    return 0;
  }

 private:
  struct Receive {
    std::uint64_t id;
    std::size_t offset;
    std::uint32_t bytes;
  };

  void deliver(std::span<const std::byte> message) {
    if (dead_) return;
    if (receives_.empty()) {
      ++wire_->unexpected;
      return;
    }
    const Receive receive = receives_.front();
    receives_.pop_front();
    const auto frames = [this](std::size_t bytes) {
      return frame_bytes_ == 0 ? 0 : (bytes + frame_bytes_ - 1) / frame_bytes_;
    };
    if (message.size() > receive.bytes || frames(message.size()) != frames(receive.bytes)) {
      complete({receive.id, true, false, 1, 0});
      return;
    }
    auto into = memory_.subspan(receive.offset, message.size());
    std::size_t written = message.size();
    if (wire_->strikes(wire_->faults.torn)) written /= 2;
    std::memcpy(into.data(), message.data(), written);
    if (wire_->strikes(wire_->faults.altered)) into[wire_->random() % 160] ^= std::byte{0x10};
    complete({receive.id, true, true, 0, static_cast<std::uint32_t>(message.size())});
  }
  void complete(const Completion& completion) {
    done_.push_back(completion);
    wake();
  }
  void wake() {
    if (!armed_) return;
    armed_ = false;
    const char byte = 1;
    [[maybe_unused]] const auto written = ::write(write_fd_, &byte, 1);
  }

  std::shared_ptr<Wire> wire_;
  std::span<std::byte> memory_;
  QueueShape shape_;
  std::uint32_t frame_bytes_;
  std::uint32_t& living_;
  std::uint32_t number_ = 0;
  std::uint32_t remote_ = 0;
  std::deque<Receive> receives_;
  std::deque<Completion> done_;
  std::deque<std::vector<std::byte>> inbox_;
  std::uint32_t sends_ = 0;
  bool armed_ = false;
  bool dead_ = false;
  int read_fd_ = -1;
  int write_fd_ = -1;
};

class FakeDevice final : public Device {
 public:
  FakeDevice(std::shared_ptr<Wire> wire, std::string name, const Limits& limits)
      : wire_(std::move(wire)), name_(std::move(name)), limits_(limits) {}

  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] const Limits& limits() const override { return limits_; }
  [[nodiscard]] bool port_active() override {
    const std::lock_guard lock(wire_->mutex);
    return !wire_->cut;
  }
  std::unique_ptr<Region> register_memory(std::span<std::byte> memory, Status& why) override {
    if (memory.size() > limits_.max_region_bytes) {
      why = Status(Code::kLocal, "registering memory: Cannot allocate memory (errno 12)");
      return nullptr;
    }
    return std::make_unique<FakeRegion>(wire_, memory);
  }
  std::unique_ptr<QueuePair> make_queue_pair(Region& region, const QueueShape& shape, Status& why) override {
    if (living_ >= std::min(limits_.max_queue_pairs, wire_->faults.refuse_beyond)) {
      why = Status(Code::kLocal, "making a queue pair: Device or resource busy (errno 16)");
      return nullptr;
    }
    const std::uint32_t places = request_places(limits_, shape.message_bytes);
    if (shape.send_requests * places > limits_.max_send_requests ||
        shape.receive_requests * places > limits_.max_receive_requests ||
        shape.send_requests + shape.receive_requests > limits_.max_completions) {
      why = Status(Code::kLocal, "making a queue pair: Invalid argument (errno 22)");
      return nullptr;
    }
    return std::make_unique<FakeQueuePair>(wire_, region.memory(), shape, limits_.frame_bytes, living_);
  }

 private:
  std::shared_ptr<Wire> wire_;
  std::string name_;
  Limits limits_;
  std::uint32_t living_ = 0;
};

}  // namespace fake_verbs
