#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "core/deadline.h"
#include "verbs/link_fit.h"
#include "verbs/link_wire.h"

namespace mm::verbs {

// What is on its way: which buffers and numbers frames have, how much room the peer has for more, what was lost, and
// when to ask. Pure: time is given, nothing is posted here.
//
// Room of a queue of a cable: receives that the peer posted, less frames sent, plus those known to be lost. A frame is
// lost where the peer has seen a later number of its queue without it, or where the peer does not have it although it
// left this device long before the peer was asked.
class SendWindow {
 public:
  struct Posting {
    std::uint64_t sequence = 0;
    std::uint32_t cable = 0;
    std::uint32_t size_class = 0;
    std::uint32_t slot = 0;
    std::uint32_t payload_bytes = 0;
    std::uint32_t queue_number = 0;
    WireKind kind = WireKind::kData;
  };
  static constexpr std::uint32_t kAnyCable = UINT32_MAX;

  SendWindow(const Fit& fit, std::chrono::duration<double, std::milli> retransmit, std::uint32_t max_attempts);

  // Whether a new frame of that class can go out now.
  [[nodiscard]] bool has_room(std::uint32_t size_class, std::uint32_t cable = kAnyCable) const;
  // Takes a buffer and the next sequence for it; only where there is room.
  Posting open(std::uint32_t size_class, std::uint32_t cable = kAnyCable);
  // The buffer holds the frame.
  void filled(std::uint64_t sequence, std::uint32_t payload_bytes, WireKind kind);
  // The next frame to post; it counts as posted.
  bool next(Posting& posting);
  // Whether a report can go out at that cable; it counts as posted and has that number.
  bool next_report(std::uint32_t cable, std::uint32_t& queue_number);
  // The device has done with a send.
  void completed(std::uint32_t cable, std::uint32_t queue, std::uint32_t queue_number, Clock::time_point now);

  // What the peer tells. False: that cannot be.
  bool arrived_to(std::uint64_t sequence);
  bool posted(std::uint32_t cable, std::uint32_t queue, std::uint32_t count);  // modulo 2^32
  bool report(const Report& report, Clock::time_point now);

  // Whether the peer should be asked now; `blocked`: the user waits for room.
  [[nodiscard]] bool wants_probe(Clock::time_point now, bool blocked);
  std::uint32_t probe(Clock::time_point now);
  // A frame of which too many copies were lost: where and why; empty: none.
  [[nodiscard]] const std::string& hopeless() const { return hopeless_; }
  // Times in a row that frames were lost at a cable without a sign that one arrived.
  [[nodiscard]] std::uint32_t fruitless(std::uint32_t cable) const { return cables_[cable].fruitless; }
  void came(std::uint32_t cable) { cables_[cable].fruitless = 0; }

  // Its frames go over the others; nothing of it completes any more.
  void drop_cable(std::uint32_t cable);

  [[nodiscard]] bool all_arrived() const { return frames_.empty(); }
  [[nodiscard]] bool waiting() const { return !waiting_.empty(); }
  // The peer has something coming that it had not seen when it reported last.
  [[nodiscard]] bool unseen() const;
  [[nodiscard]] std::uint64_t opened() const { return first_ + frames_.size(); }
  [[nodiscard]] std::uint64_t retransmitted() const { return retransmitted_; }
  [[nodiscard]] std::uint64_t probes() const { return probe_; }

 private:
  enum class State : std::uint8_t { kFilling, kWaiting, kFlying, kArrived };
  struct Frame {
    State state = State::kFilling;
    WireKind kind = WireKind::kData;
    std::uint32_t size_class = 0;
    std::uint32_t slot = 0;
    std::uint32_t payload_bytes = 0;
    std::uint32_t pinned = kAnyCable;
    std::uint32_t attempts = 0;
    std::uint32_t cable = 0;       // of the last post
    std::uint64_t queue_number = 0;
  };
  struct Sent {
    static constexpr std::uint64_t kReport = UINT64_MAX;
    std::uint64_t sequence = kReport;
    std::uint32_t slot = 0;
    bool completed = false;
    bool lost = false;
    Clock::time_point completed_at{};
  };
  struct Queue {
    std::uint64_t posted = 0;
    std::uint64_t lost = 0;       // as the peer knows
    std::uint64_t next_seen = 0;  // the peer's `next`
    std::uint64_t seen_at_probe = 0;
    std::uint64_t given_up = 0;   // at or beyond next_seen, which only we take for lost
    std::uint64_t next = 0;
    std::uint64_t first_sent = 0;  // number of sent.front()
    std::deque<Sent> sent;         // until seen and completed
    std::uint32_t posts = 0;       // not completed

    [[nodiscard]] std::int64_t room() const { return static_cast<std::int64_t>(posted + lost + given_up - next); }
  };
  struct Cable {
    bool alive = true;
    std::uint64_t flying_bytes = 0;
    std::uint32_t fruitless = 0;
  };
  struct Slot {
    std::uint32_t posts = 0;
    bool owned = false;
  };

  [[nodiscard]] const Queue& at(std::uint32_t cable, std::uint32_t queue) const {
    return queues_[cable * fit_.classes.size() + queue];
  }
  Queue& at(std::uint32_t cable, std::uint32_t queue) { return queues_[cable * fit_.classes.size() + queue]; }
  [[nodiscard]] std::uint32_t route(std::uint32_t size_class, std::uint32_t pinned, bool oldest,
                                    std::uint32_t avoid) const;
  void post(Frame& frame, std::uint64_t sequence, std::uint32_t cable);
  void arrived(std::uint64_t sequence);
  void lose(std::uint64_t sequence);
  void release(std::uint32_t size_class, std::uint32_t slot);
  void seen(Queue& queue, std::uint64_t next);
  static void forget_done(Queue& queue);
  void give_up_silent();

  Fit fit_;
  Clock::duration retransmit_;
  std::uint32_t max_attempts_;
  std::vector<Queue> queues_;
  std::vector<Cable> cables_;
  std::vector<std::vector<Slot>> slots_;              // by class
  std::vector<std::vector<std::uint32_t>> free_;      // by class
  std::vector<std::uint32_t> waiting_of_class_;
  std::deque<Frame> frames_;
  std::uint64_t first_ = 0;  // sequence of frames_.front()
  std::set<std::uint64_t> waiting_;
  std::string hopeless_;
  std::uint64_t retransmitted_ = 0;

  std::uint32_t probe_ = 0;
  bool probing_ = false;
  Clock::time_point probed_at_{};
  Clock::time_point quiet_since_{};  // of the last answer or progress while something was owed
  bool owed_ = false;
  bool moved_ = false;               // since the last probe
  Clock::duration patience_;
};

}  // namespace mm::verbs
