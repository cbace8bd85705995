#pragma once

#include <poll.h>

#include <vector>

#include "core/descriptor.h"

namespace mm::shm {

// A half's Unix socket: a byte wakes the other side, its end says that the other side is gone.
class Doorbell {
 public:
  explicit Doorbell(mm::Descriptor socket) : socket_(std::move(socket)) {}

  void ring();   // never blocks
  void drain();  // takes all bytes that came; notices the end
  void shutdown();
  void arm(std::vector<pollfd>& descriptors) const { descriptors.push_back({socket_.get(), POLLIN, 0}); }
  [[nodiscard]] bool ended() const { return ended_; }

 private:
  mm::Descriptor socket_;
  bool ended_ = false;
};

}  // namespace mm::shm
