#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "core/status.h"

namespace mm {

// The side sockets of a group: one idle stream socket to each peer, on which nothing travels but the end. It tells a
// peer's death at once (the system closes the socket), carries the reason of an error to the other side, and tells an
// orderly farewell from a loss. One thread blocks in poll on all of them.
class SideSockets {
 public:
  // peer, why it ended: kPeerLost (closed, or said goodbye; the text says which) or kAborted with the peer's reason.
  using OnEnd = std::function<void(int peer, const Status& why)>;

  // Takes the descriptors over. `on_end` is called at most once for each peer, from the watching thread.
  SideSockets(std::map<int, int> descriptor_by_peer, OnEnd on_end);
  ~SideSockets();  // says nothing; call farewell or abort before
  SideSockets(const SideSockets&) = delete;
  SideSockets& operator=(const SideSockets&) = delete;

  void farewell();                        // orderly end, to all
  void abort(const std::string& reason);  // gives up, to all; at most 4,000 bytes of the reason travel

 private:
  void watch();
  void tell(std::uint8_t kind, const std::string& text);

  std::map<int, int> descriptors_;
  OnEnd on_end_;
  std::mutex mutex_;
  bool told_ = false;
  int wake_read_ = -1;
  int wake_write_ = -1;
  std::thread thread_;
};

}  // namespace mm
