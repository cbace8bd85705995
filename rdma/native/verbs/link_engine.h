#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/link.h"
#include "verbs/link_control.h"
#include "verbs/link_fit.h"
#include "verbs/link_options.h"
#include "verbs/link_receive_window.h"
#include "verbs/link_send_window.h"
#include "verbs/queue_pair.h"

namespace mm::verbs {

// Memory of whole pages.
class PageMemory {
 public:
  explicit PageMemory(std::size_t bytes);  // throws std::bad_alloc
  ~PageMemory();
  PageMemory(PageMemory&& other) noexcept;
  PageMemory(const PageMemory&) = delete;
  PageMemory& operator=(const PageMemory&) = delete;
  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, bytes_}; }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

// One cable's end, connected. Members go in the reverse order.
struct CableEnd {
  std::string name;  // for people
  std::unique_ptr<Device> device;
  std::unique_ptr<Region> region;
  std::vector<std::unique_ptr<QueuePair>> queues;  // by size class
};

// What a link did; for tests and measurements.
struct LinkCounts {
  std::uint64_t retransmitted = 0;  // frames posted again
  std::uint64_t lost = 0;           // frames and reports of the peer that never came
  std::uint64_t broken = 0;         // that came, but not whole
  std::uint64_t repeated = 0;       // that came twice
  std::uint64_t probes = 0;
  std::uint64_t reports = 0;        // sent over a cable
  std::uint32_t cables = 0;         // alive
};

// The state of a link that its two halves and its service thread share, under one lock that is never held while a
// payload is copied. Whoever calls polls the queue pairs and does what follows; nobody waits here.
//
// The service thread sleeps on the control socket. It answers probes, asks about frames of which nothing was heard,
// sends again what was lost, says that this end lives, and notices the other's death, also while the user computes.
class Engine {
 public:
  enum class Side : std::uint8_t { kSend, kReceive };

  // The receives are posted. Throws std::system_error where a pipe cannot be had.
  Engine(ControlSocket control, PageMemory memory, std::vector<CableEnd> cables, Fit fit, const LinkSettings& settings,
         std::uint32_t link);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void start();  // the service thread
  // Waits until the peer has all that was sent, for a bounded time, and says goodbye; then gives everything up.
  void close();
  void abort();  // from any thread
  void give_up(const Status& why);  // fails the link and tells the peer why

  // --- of the sending half ---
  // A buffer for a frame of that payload: kDone with `buffer` and `sequence`, kIdle where there is none now.
  Progress open(std::size_t payload_bytes, std::uint64_t& sequence, std::span<std::byte>& buffer, Status& why,
                std::uint32_t cable = SendWindow::kAnyCable, std::uint32_t size_class = UINT32_MAX);
  // The payload and the frame's header are in the buffer.
  Progress publish(std::uint64_t sequence, std::size_t payload_bytes, WireKind kind, Status& why);

  // --- of the receiving half ---
  // The next frame: kDone with its buffer, from the frame's header on, which stays until `taken`.
  Progress front(std::span<const std::byte>& header, std::span<const std::byte>& payload, Status& why);
  void taken(bool ends_message);

  bool arm(Side side, std::vector<pollfd>& descriptors);
  void disarm(Side side);

  // Sends a pattern over every queue of every cable and expects the peer's; both sides do so at the start. Not ok where
  // a cable did not carry it.
  Status verify(std::uint64_t own_seed, std::uint64_t peer_seed, Deadline deadline);

  [[nodiscard]] const Fit& fit() const { return fit_; }
  [[nodiscard]] std::size_t pool_bytes() const { return memory_.bytes().size(); }
  [[nodiscard]] LinkCounts counts();
  [[nodiscard]] bool stopped() const { return stopped_.load(std::memory_order_acquire); }

 private:
  struct Waker {
    int read_fd = -1;
    int write_fd = -1;
    bool asleep = false;
    void ring() const;
    void drain() const;
  };
  struct CableState {
    bool alive = true;
    std::uint32_t report_buffers = (1U << kReportBuffers) - 1;  // a bit for each that is free
    std::vector<std::uint32_t> owed;                            // receives posted again since a report said so
  };

  // All with the lock held.
  [[nodiscard]] bool over() const { return !status_.ok(); }
  void poll_queues();
  void on_completion(std::uint32_t cable, std::uint32_t queue, const Completion& completion);
  void on_received(std::uint32_t cable, std::uint32_t queue, std::uint32_t slot, std::uint32_t bytes);
  void repost(std::uint32_t cable, std::uint32_t queue, std::uint32_t slot);
  void settle();  // posts what can be posted, tells what is owed, wakes who can go on
  void transmit(const SendWindow::Posting& posting);
  Prefix prefix(std::uint32_t cable, std::uint32_t queue, std::uint32_t queue_number) const;
  bool report_by_cable();
  void report_by_control(std::uint32_t answers, bool asleep);
  void posted_one();  // wakes the peer's user where it sleeps
  void wake_peer();
  void read_control();
  void on_control(const ControlMessage& message);
  void tick(Clock::time_point now);
  void lose_cable(std::uint32_t cable, const std::string& why, bool tell = true);
  void fail(Status why, bool tell = true);
  [[nodiscard]] bool can_go_on(Side side) const;
  void keep_warm();
  // How long until the service thread looks at the queues for users that sleep; infinite where others wake them.
  [[nodiscard]] double look_ms(Clock::time_point now) const;
  void linger(std::unique_lock<std::mutex>& lock);
  [[nodiscard]] std::size_t alive() const;
  static void drain(CableEnd& cable);

  void serve();

  // A buffer of the region.
  [[nodiscard]] std::span<std::byte> at(std::size_t offset, std::size_t bytes) const {
    return memory_.bytes().subspan(offset, bytes);
  }

  const Fit fit_;
  const LinkSettings settings_;
  const std::uint32_t link_;
  PageMemory memory_;
  std::vector<CableEnd> cables_;
  std::vector<CableState> states_;
  ControlSocket control_;

  std::mutex mutex_;
  std::condition_variable changed_;
  SendWindow send_;
  ReceiveWindow receive_;
  Status status_;  // of the link; what arrived before is still given
  std::atomic<bool> stopped_{false};
  Waker sender_;
  Waker receiver_;
  Waker service_;
  std::thread thread_;
  bool quit_ = false;
  bool closed_ = false;

  bool tell_now_ = false;      // something that the sender should know at once
  bool blocked_ = false;       // the user waits for a buffer of blocked_class_
  std::uint32_t blocked_class_ = 0;
  std::uint32_t blocked_cable_ = SendWindow::kAnyCable;
  bool peer_asleep_ = false;
  std::uint64_t posts_since_wake_ = 0;
  bool echoed_ = false;        // the peer has all our echoes
  bool blind_ = false;         // no queue has a descriptor to wait on
  Clock::time_point stirred_at_{};  // when something came, or the peer said that something comes
  bool warm_ = false;          // the service thread ticks
  Clock::time_point warm_since_{};
  Clock::time_point heard_at_{};
  Clock::time_point said_at_{};
  LinkCounts counts_;
};

}  // namespace mm::verbs
