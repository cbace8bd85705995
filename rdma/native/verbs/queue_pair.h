#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/status.h"

// What the link protocol sees of verbs: a device with its protection domain, one registered region, queue pairs.
// verbs_device.h implements it over the system's library; tests implement it in process.
namespace mm::verbs {

// What a device can have at most, as it said itself when it was opened.
struct Limits {
  std::uint32_t max_queue_pairs = 0;
  std::uint32_t max_regions = 0;
  std::uint32_t max_send_requests = 0;     // of one queue pair, in places: see request_places
  std::uint32_t max_receive_requests = 0;  // of one queue pair, in places
  std::uint32_t max_completions = 0;       // of one completion queue
  std::uint64_t max_message_bytes = 0;
  std::uint64_t max_region_bytes = 0;
  // Bytes of a wire frame where the device counts in them, else 0. Then (Thunderbolt: 4096) a request takes one place
  // of its queue per frame, and a receive must cover exactly as many frames as the send that it meets.
  std::uint32_t frame_bytes = 0;
};

// Places that a request of that many bytes takes in its queue.
constexpr std::uint32_t request_places(const Limits& limits, std::uint64_t bytes) {
  if (limits.frame_bytes == 0 || bytes == 0) return 1;
  return static_cast<std::uint32_t>((bytes + limits.frame_bytes - 1) / limits.frame_bytes);
}

struct Completion {
  std::uint64_t id = 0;
  bool receive = false;
  bool ok = false;
  std::uint32_t status = 0;  // ibv_wc_status; abi::WcStatus names those that matter
  std::uint32_t bytes = 0;   // of the message, for a receive that is ok; else 0
};

enum class Mode : std::uint8_t {
  kUC,  // unreliable connection: nothing acknowledges a send; a lost message is silence
  kRC,  // reliable connection: the device acknowledges, and reports a peer that does not answer
};

// What the peer must know of this end to connect to it.
struct Address {
  std::uint32_t queue_pair_number = 0;
  std::uint32_t packet_sequence = 0;  // 24 bits
  std::uint16_t lid = 0;
  std::array<std::byte, 16> gid{};
  std::uint8_t mtu = 0;  // ibv_mtu: 1 is 256 bytes, 5 is 4096; both ends use the smaller
};

// Registered memory. The owner of the bytes keeps them for as long as the region lives.
class Region {
 public:
  Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  virtual ~Region() = default;
  [[nodiscard]] virtual std::span<std::byte> memory() const = 0;
};

// One end of a connection. post_send, post_receive and poll may each be called by a thread of its own; two threads in
// the same call need a lock of the caller. No call blocks, except drain. Destroying it without drain gives no time to
// what is in flight.
class QueuePair {
 public:
  QueuePair() = default;
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;
  virtual ~QueuePair() = default;

  [[nodiscard]] virtual Address address() const = 0;

  // INIT, ready to receive, ready to send; a failure tells which step and why. Apple's library takes receives only
  // after that: post them next, and tell the peer before it sends.
  virtual Status connect(const Address& remote) = 0;

  // Of `bytes` at `offset` of the region. The id, below 2^63, comes back in the completion. kLocal where the queue is
  // full (whoever posts counts, so it is their fault), the range is outside of the region, or the device refuses.
  virtual Status post_send(std::uint64_t id, std::size_t offset, std::uint32_t bytes) = 0;
  virtual Status post_receive(std::uint64_t id, std::size_t offset, std::uint32_t bytes) = 0;

  // Fills the front of `into` with what has completed, of both directions, and returns how many.
  // A failure of the completion queue itself: see failure().
  virtual std::size_t poll(std::span<Completion> into) = 0;

  // Not ok once poll or arm failed: the queue pair is of no more use.
  [[nodiscard]] virtual Status failure() const = 0;

  // Becomes readable when something completes after `arm`; -1 where there is no such descriptor.
  [[nodiscard]] virtual int wait_descriptor() const = 0;

  // Asks for one wake-up of the descriptor. False: completions are there already (poll gives them), or there is no
  // descriptor, so do not wait for it. Wake-ups may come early or for nothing.
  virtual bool arm() = 0;

  // Moves to the error state, where everything posted comes back as flushed, and polls until it has or the time is
  // over. Where the device must not be in that state (see DeviceOptions), only the sends are waited for. Returns how
  // many requests never came back. Nothing can be posted afterwards.
  virtual std::size_t drain(double seconds) = 0;
};

// What a queue pair is made for.
struct QueueShape {
  Mode mode = Mode::kUC;
  std::uint32_t send_requests = 0;     // posted at once at most
  std::uint32_t receive_requests = 0;  // posted at once at most
  std::uint32_t message_bytes = 0;     // of the largest request
};

// An opened device with its protection domain. Regions and queue pairs of it must be gone before it goes.
class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual const Limits& limits() const = 0;

  // Asks the device now: false once the cable is pulled or the peer's port is down.
  [[nodiscard]] virtual bool port_active() = 0;

  // Null and the reason where the device refuses. `memory` must be aligned to a page and last as long as the region.
  virtual std::unique_ptr<Region> register_memory(std::span<std::byte> memory, Status& why) = 0;

  // Null and the reason where the device refuses or cannot hold what the shape asks for. The region outlives it.
  virtual std::unique_ptr<QueuePair> make_queue_pair(Region& region, const QueueShape& shape, Status& why) = 0;
};

}  // namespace mm::verbs
