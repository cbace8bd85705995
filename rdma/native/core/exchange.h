#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "core/channel.h"
#include "core/deadline.h"

namespace mm {

// Ends every wait of a group from another thread: a flag for those that spin, a descriptor for those that block.
class Stopper {
 public:
  Stopper();  // throws std::system_error where no pipe can be had
  ~Stopper();
  Stopper(const Stopper&) = delete;
  Stopper& operator=(const Stopper&) = delete;

  void stop();  // from any thread; harmless when repeated
  [[nodiscard]] bool stopped() const { return stopped_.load(std::memory_order_acquire); }
  [[nodiscard]] int descriptor() const { return read_fd_; }  // readable once stopped, for ever

 private:
  std::atomic<bool> stopped_{false};
  int read_fd_ = -1;
  int write_fd_ = -1;
};

// Sends and receives several messages at once in the calling thread: moves what can move, spins briefly, then blocks.
// At most one send and one receive of a channel: a second would wait for the first's lock for ever.
class Exchange {
 public:
  Exchange(const Stopper& stopper, double spin_us) : stopper_(stopper), spin_us_(spin_us) {}

  // The payloads must live until `run` returns.
  void send(Channel& channel, const Message& message, std::span<const std::byte> payload);
  void receive(Channel& channel, const Message& expected, std::span<std::byte> into);
  void receive(Channel& channel, const Message& expected, std::vector<std::byte>& into, std::size_t most_bytes);

  struct Outcome {
    Status status;
    int peer = -1;  // whose link failed, or who is waited for; -1 where no single one is
  };
  // Returns once all are done or one failed, the deadline passed (kTimeout names who is waited for) or the stopper
  // stopped (kAborted).
  Outcome run(Deadline deadline);

 private:
  Outcome timed_out() const;
  bool block(Deadline deadline);

  const Stopper& stopper_;
  double spin_us_;
  // Those that are not done yet.
  std::vector<std::unique_ptr<Channel::Sending>> sends_;
  std::vector<std::unique_ptr<Channel::Receiving>> receives_;
};

}  // namespace mm
