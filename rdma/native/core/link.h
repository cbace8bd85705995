#pragma once

#include <poll.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/frame.h"
#include "core/options.h"
#include "core/status.h"

namespace mm {

// How far a call came. A link never blocks: whoever calls it waits, see core/exchange.h.
enum class Progress : std::uint8_t {
  kDone,    // what was asked is finished
  kMoved,   // some bytes moved; call again
  kIdle,    // nothing can move now; wait for `arm`'s descriptors
  kFailed,  // see failure()
};

// One direction of a link, as its user sees it. Each half belongs to one thread at a time; the two halves of a
// link may be used by two threads at once.
class Half {
 public:
  Half() = default;
  Half(const Half&) = delete;
  Half& operator=(const Half&) = delete;
  virtual ~Half() = default;

  // Announces that the caller is about to block and appends what to poll. False: progress is possible at once,
  // so do not block. After the wait call `disarm`, whatever woke it.
  virtual bool arm(std::vector<pollfd>& descriptors) = 0;
  virtual void disarm() = 0;

  // Why the last call gave kFailed.
  [[nodiscard]] const Status& failure() const { return failure_; }

 protected:
  Progress fail(Status why) {
    failure_ = std::move(why);
    return Progress::kFailed;
  }

 private:
  Status failure_;
};

class SendHalf : public Half {
 public:
  // Sends one frame whole. Keeps how far it came: call again with the same frame until kDone. Done means that the
  // payload's memory may be reused, not that the peer has it.
  virtual Progress try_send(const FrameHeader& header, std::span<const std::byte> payload) = 0;

  // Most payload bytes of one frame of a message of that many bytes; at least 1.
  [[nodiscard]] virtual std::size_t frame_limit(std::size_t message_bytes) const = 0;
};

class ReceiveHalf : public Half {
 public:
  // The next frame's header, checked by decode_header. The same header again until its payload is taken.
  virtual Progress try_header(FrameHeader& header) = 0;

  // Moves the payload of the header last given, whole, to `into` (frame_bytes long). Call again with the same
  // span until kDone.
  virtual Progress try_payload(std::span<std::byte> into) = 0;
};

// An ordered, reliable path of frames to one peer, in both directions.
class Link {
 public:
  Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  virtual ~Link() = default;

  virtual SendHalf& sender() = 0;
  virtual ReceiveHalf& receiver() = 0;

  // "tcp", "shm", ...
  [[nodiscard]] virtual std::string provider() const = 0;

  // Bytes of buffers that this link holds, exactly: what it allocated or registered on this side.
  [[nodiscard]] virtual std::size_t pool_bytes() const = 0;

  // Makes every later call on both halves fail and wakes the peer's waits. May be called from any thread.
  virtual void abort() = 0;
};

}  // namespace mm
