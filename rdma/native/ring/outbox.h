#pragma once

#include <deque>
#include <mutex>
#include <string>

#include "doorbell.h"
#include "spsc.h"

namespace mm::spsc {

inline constexpr std::size_t kMostMessageBytes = 16 * 1024 * 1024;

// The sending side: a producer, and a queue for what the ring has no space for. Every function may be called from any
// thread and never blocks: the mutex makes one producer of many threads, and nobody waits while holding it.
class Outbox {
 public:
  enum class Sent : std::uint8_t {
    kSent,     // in the ring, or in the queue
    kTooLong,  // refused: over kMostMessageBytes
    kBacklog,  // refused: the queue is at its limit
    kEnded,    // refused: end() was called
    kCorrupt,  // the consumer's values cannot be; nothing works any more
  };

  // Throws as Producer's. The descriptor must stay open until end() has returned.
  Outbox(std::span<std::byte> memory, int doorbell, std::size_t most_pending_bytes)
      : producer_(memory), doorbell_(doorbell), most_pending_bytes_(most_pending_bytes) {}

  Sent send(std::span<const std::byte> message) {
    if (message.size() > kMostMessageBytes) return Sent::kTooLong;
    const std::lock_guard lock(mutex_);
    if (corrupt_) return Sent::kCorrupt;
    if (ended_) return Sent::kEnded;
    if (!queue_.empty()) {
      // Only push() takes from the queue, so that whoever waits for it to shrink knows where to look.
      if (pending_bytes_ + message.size() > most_pending_bytes_) return Sent::kBacklog;
      enqueue(message, 0);
      return Sent::kSent;
    }
    std::size_t written = 0;
    switch (write(message, written)) {
      case Result::kDone:
        return Sent::kSent;
      case Result::kWait:
        enqueue(message, written);
        return Sent::kSent;
      case Result::kCorrupt:
        break;
    }
    corrupt_ = true;
    return Sent::kCorrupt;
  }

  // Moves what it can from the queue to the ring: to be called when the doorbell rings. False: corrupt.
  bool push() {
    const std::lock_guard lock(mutex_);
    while (!corrupt_ && !ended_ && !queue_.empty()) {
      Waiting& next = queue_.front();
      const std::size_t before = next.written;
      const Result result = write(std::as_bytes(std::span(next.message)), next.written);
      pending_bytes_ -= next.written - before;
      if (result == Result::kWait) break;
      if (result == Result::kDone) queue_.pop_front();
      corrupt_ = result == Result::kCorrupt;
    }
    return !corrupt_;
  }

  // Bytes that wait for space in the ring.
  [[nodiscard]] std::size_t pending_bytes() {
    const std::lock_guard lock(mutex_);
    return pending_bytes_;
  }

  // Whether nothing waits; a waiting message may be empty.
  [[nodiscard]] bool idle() {
    const std::lock_guard lock(mutex_);
    return queue_.empty();
  }

  // Wake-ups so far.
  [[nodiscard]] std::uint64_t rung() {
    const std::lock_guard lock(mutex_);
    return doorbell_.rung();
  }

  // Refuses everything from now on; says goodbye if everything went through. The doorbell is not used any more.
  void end() {
    const std::lock_guard lock(mutex_);
    if (!ended_ && !corrupt_ && queue_.empty()) producer_.end();
    ended_ = true;
    queue_.clear();
    pending_bytes_ = 0;
  }

 private:
  struct Waiting {
    std::string message;
    std::size_t written;
  };

  // Writes and wakes. kWait: the ring is full, and the consumer knows that we sleep.
  Result write(std::span<const std::byte> message, std::size_t& written) {
    for (;;) {
      const Result result = producer_.write(message, written);
      if (producer_.must_wake()) doorbell_.ring();
      if (result != Result::kWait) return result;
      const Result asleep = producer_.sleep(message.size() - written);
      if (asleep != Result::kDone) return asleep;
    }
  }

  void enqueue(std::span<const std::byte> message, std::size_t written) {
    queue_.push_back({std::string(reinterpret_cast<const char*>(message.data()), message.size()), written});
    pending_bytes_ += message.size() - written;
  }

  std::mutex mutex_;
  Producer producer_;
  Doorbell doorbell_;
  std::deque<Waiting> queue_;
  std::size_t pending_bytes_ = 0;
  std::size_t most_pending_bytes_;
  bool ended_ = false;
  bool corrupt_ = false;
};

}  // namespace mm::spsc
