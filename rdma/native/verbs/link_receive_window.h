#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "verbs/link_wire.h"

namespace mm::verbs {

// What has arrived, puts it in order, and knows what to tell the sender. Pure: no clock, no device.
//
// A queue pair keeps the order of what it carries, so a number above the expected one says that those between are lost.
// A lost send leaves its receive posted; that is why a queue's losses are counted as room for the sender, but only in a
// Report, which also says what is missing: else a new frame could take the room that the missing one needs.
class ReceiveWindow {
 public:
  // Where a frame lies: the receive of that number of a queue of a cable.
  struct Place {
    std::uint32_t cable = 0;
    std::uint32_t queue = 0;
    std::uint32_t slot = 0;
    std::uint32_t payload_bytes = 0;
  };
  enum class Verdict : std::uint8_t {
    kKept,       // its receive is in use until `take`
    kRepeated,   // it was here before: post the receive again and call `reposted`
    kImpossible, // no honest sender does that
  };

  ReceiveWindow(std::uint32_t cables, std::uint32_t queues, std::uint32_t max_outstanding);

  // So many receives were posted at a queue at the start.
  void posted(std::uint32_t cable, std::uint32_t queue, std::uint32_t receives);
  // A receive that a whole frame had used was posted again.
  void reposted(std::uint32_t cable, std::uint32_t queue) { ++at(cable, queue).report.posted; }

  // A frame of the queue with that number (of 32 bits) came whole. False: no sender can have sent that.
  bool numbered(std::uint32_t cable, std::uint32_t queue, std::uint32_t queue_number);
  // What came was no whole frame: it counts as lost once a later one shows so. Its receive is to be posted again,
  // without `reposted`.
  void broken() { gap_ = true; }
  // The sequence of a frame whose `numbered` was true.
  Verdict data(std::uint64_t sequence, const Place& place);

  // The next frame in order.
  [[nodiscard]] const Place* front() const;
  // The user has taken it; its receive is to be posted again.
  Place take();

  [[nodiscard]] std::uint64_t arrived_to() const { return arrived_to_; }
  [[nodiscard]] std::uint64_t taken_to() const { return taken_to_; }
  // Something is missing of which the sender should be told at once.
  [[nodiscard]] bool gap() const { return gap_; }
  [[nodiscard]] std::uint64_t lost() const { return lost_; }
  [[nodiscard]] std::uint64_t posted_at(std::uint32_t cable, std::uint32_t queue) const {
    return queues_[cable * queue_count_ + queue].report.posted;
  }
  // All of it; ends the gap.
  [[nodiscard]] Report report();

 private:
  struct Queue {
    QueueReport report;
    std::uint64_t whole = 0;  // frames that came whole
  };
  Queue& at(std::uint32_t cable, std::uint32_t queue) { return queues_[cable * queue_count_ + queue]; }

  std::uint32_t queue_count_;
  std::uint32_t max_outstanding_;
  std::vector<Queue> queues_;
  std::uint64_t taken_to_ = 0;
  std::uint64_t arrived_to_ = 0;
  std::deque<std::optional<Place>> frames_;  // from taken_to_
  std::uint64_t lost_ = 0;
  bool gap_ = false;
};

}  // namespace mm::verbs
