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
//
// What travels is one message, little-endian: a byte of kind (1 abort, 2 farewell), a byte of code (see Code), two bytes
// of the rank to blame (65535: none), two bytes of length, and that many bytes of UTF-8 reason. A farewell is zero but for
// its kind.
class SideSockets {
 public:
  static constexpr std::size_t kReasonBytes = 4000;  // the most that travels of a reason

  enum class End : std::uint8_t {
    kLost,      // closed without a word: the peer died or lost its network
    kFarewell,  // closed in order
    kAborted,   // gave up, for a reason
    kCorrupt,   // sent what cannot be a side message; the reason's text says what
  };
  struct Reason {
    Code code = Code::kAborted;
    int blamed = -1;  // rank; -1: none
    std::string text;
  };
  using OnEnd = std::function<void(int peer, End how, const Reason& reason)>;

  // Takes the descriptors over. `on_end` is called at most once for each peer, from the watching thread. Throws
  // std::system_error, after closing the descriptors, where a pipe or a thread cannot be had.
  SideSockets(std::map<int, int> descriptor_by_peer, OnEnd on_end);
  ~SideSockets();  // says nothing; call farewell or abort before. Not from the watching thread.
  SideSockets(const SideSockets&) = delete;
  SideSockets& operator=(const SideSockets&) = delete;

  // Only the first word counts; it never blocks.
  void farewell();                   // orderly end, to all
  void abort(const Reason& reason);  // gives up, to all

 private:
  void watch();
  void tell(const std::string& message);

  std::map<int, int> descriptors_;
  OnEnd on_end_;
  std::mutex mutex_;
  bool told_ = false;
  int wake_read_ = -1;
  int wake_write_ = -1;
  std::thread thread_;
};

}  // namespace mm
