#include "verbs/link_engine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <new>

#include "core/pipe.h"
#include "verbs/link_bytes.h"

namespace mm::verbs {
namespace {

// For a cable's queue pairs to give back what was posted, all together.
constexpr double kDrainSeconds = 0.5;

}  // namespace

PageMemory::PageMemory(std::size_t bytes) : bytes_(bytes) {
  void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(mapped);
}

PageMemory::~PageMemory() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

PageMemory::PageMemory(PageMemory&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void Engine::Waker::ring() const {
  const char byte = 1;
  // A full pipe holds bytes that wake.
  [[maybe_unused]] const auto written = ::write(write_fd, &byte, 1);
}

void Engine::Waker::drain() const {
  std::array<char, 64> bytes{};
  while (::read(read_fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size())) {
  }
}

Engine::Engine(ControlSocket control, PageMemory memory, std::vector<CableEnd> cables, Fit fit,
               const LinkSettings& settings, std::uint32_t link)
    : fit_(std::move(fit)),
      settings_(settings),
      link_(link),
      memory_(std::move(memory)),
      cables_(std::move(cables)),
      states_(cables_.size()),
      control_(std::move(control)),
      send_(fit_, std::chrono::duration<double, std::milli>(settings.retransmit_ms), settings.max_attempts),
      receive_(fit_.cables, static_cast<std::uint32_t>(fit_.classes.size()), fit_.max_outstanding) {
  for (std::uint32_t cable = 0; cable < fit_.cables; ++cable) {
    states_[cable].owed.resize(fit_.classes.size());
    for (std::uint32_t k = 0; k < fit_.classes.size(); ++k) receive_.posted(cable, k, fit_.classes[k].receives);
  }
  Waker* const wakers[] = {&sender_, &receiver_, &service_};
  try {
    for (Waker* waker : wakers) make_pipe(waker->read_fd, waker->write_fd, "waking a verbs link's waits");
  } catch (...) {
    for (Waker* waker : wakers) {
      if (waker->read_fd >= 0) ::close(waker->read_fd);
      if (waker->write_fd >= 0) ::close(waker->write_fd);
    }
    throw;
  }
  heard_at_ = said_at_ = Clock::now();
}

Engine::~Engine() {
  close();
  for (const Waker* waker : {&sender_, &receiver_, &service_}) {
    ::close(waker->read_fd);
    ::close(waker->write_fd);
  }
}

void Engine::start() {
  thread_ = std::thread([this] { serve(); });
}

void Engine::abort() {
  stopped_.store(true, std::memory_order_release);
  std::lock_guard lock(mutex_);
  fail(Status(Code::kAborted, "the link was aborted"), false);
  control_.shutdown();
  changed_.notify_all();
}

void Engine::give_up(const Status& why) {
  std::lock_guard lock(mutex_);
  fail(why);
  (void)control_.send_all(Deadline::after(0.2));
}

void Engine::close() {
  {
    std::unique_lock lock(mutex_);
    if (closed_) return;
    closed_ = true;
    if (!over() && thread_.joinable()) linger(lock);
    if (!over()) {
      control_.send(ControlKind::kEnd, ByteWriter().number(std::uint8_t{0}).text("the peer closed the link").bytes());
      (void)control_.send_all(Deadline::after(0.2));
    }
    quit_ = true;
    service_.ring();
  }
  if (thread_.joinable()) thread_.join();
  // Nothing is freed that the device may still use.
  for (std::size_t i = 0; i < cables_.size(); ++i) {
    if (states_[i].alive) drain(cables_[i]);
  }
  cables_.clear();
  control_.shutdown();
}

void Engine::linger(std::unique_lock<std::mutex>& lock) {
  const auto deadline = Deadline::after(settings_.linger_seconds);
  bool asked = false;
  for (;;) {
    poll_queues();
    settle();
    if (over() || send_.all_arrived() || deadline.passed()) return;
    if (!asked) {
      control_.send(ControlKind::kProbe, ByteWriter().number(send_.probe(Clock::now())).bytes());
      asked = true;
      keep_warm();
    }
    changed_.wait_for(lock, std::chrono::milliseconds(2));
  }
}

void Engine::drain(CableEnd& cable) {
  double left = kDrainSeconds;
  for (const auto& queue : cable.queues) {
    const auto start = Clock::now();
    (void)queue->drain(left);
    left = std::max(0.0, left - std::chrono::duration<double>(Clock::now() - start).count());
  }
}

std::size_t Engine::alive() const {
  return static_cast<std::size_t>(
      std::count_if(states_.begin(), states_.end(), [](const CableState& state) { return state.alive; }));
}

LinkCounts Engine::counts() {
  std::lock_guard lock(mutex_);
  LinkCounts counts = counts_;
  counts.retransmitted = send_.retransmitted();
  counts.probes = send_.probes();
  counts.lost = receive_.lost();
  counts.cables = static_cast<std::uint32_t>(alive());
  return counts;
}

// --- The sending half.

Progress Engine::open(std::size_t payload_bytes, std::uint64_t& sequence, std::span<std::byte>& buffer, Status& why,
                      std::uint32_t cable, std::uint32_t size_class) {
  std::lock_guard lock(mutex_);
  const auto k = size_class != UINT32_MAX ? size_class : static_cast<std::uint32_t>(fit_.class_for(payload_bytes));
  if (!over() && !send_.has_room(k, cable)) {
    poll_queues();
    settle();
  }
  if (over()) {
    why = status_;
    return Progress::kFailed;
  }
  blocked_ = !send_.has_room(k, cable);
  keep_warm();
  if (blocked_) {
    blocked_class_ = k;
    blocked_cable_ = cable;
    return Progress::kIdle;
  }
  const SendWindow::Posting posting = send_.open(k, cable);
  sequence = posting.sequence;
  buffer = at(fit_.send_offset(k, posting.slot), fit_.classes[k].bytes);
  return Progress::kDone;
}

Progress Engine::publish(std::uint64_t sequence, std::size_t payload_bytes, WireKind kind, Status& why) {
  std::lock_guard lock(mutex_);
  if (over()) {
    why = status_;
    return Progress::kFailed;
  }
  send_.filled(sequence, static_cast<std::uint32_t>(payload_bytes), kind);
  settle();
  return Progress::kDone;
}

// --- The receiving half.

Progress Engine::front(std::span<const std::byte>& header, std::span<const std::byte>& payload, Status& why) {
  std::lock_guard lock(mutex_);
  if (receive_.front() == nullptr && !over()) {
    poll_queues();
    settle();
  }
  const ReceiveWindow::Place* place = receive_.front();
  if (place == nullptr) {
    if (!over()) return Progress::kIdle;
    why = status_;
    return Progress::kFailed;
  }
  const std::size_t offset = fit_.receive_offset(place->cable, place->queue, place->slot);
  header = at(offset + kPrefixBytes, kFrameHeaderBytes);
  payload = at(offset + kPayloadAt, place->payload_bytes);
  return Progress::kDone;
}

void Engine::taken(bool ends_message) {
  std::lock_guard lock(mutex_);
  const ReceiveWindow::Place place = receive_.take();
  if (over()) return;
  repost(place.cable, place.queue, place.slot);
  receive_.reposted(place.cable, place.queue);
  // The sender needs its buffers and room back before it runs out; and where nothing follows, it waits for nothing else.
  CableState& state = states_[place.cable];
  const SizeClass& of = fit_.classes[place.queue];
  const std::uint32_t usable = of.receives - fit_.spare_receives - (place.queue == 0 ? kReportReceives : 0);
  const bool half = ++state.owed[place.queue] >= std::max(1U, usable / 2);
  if (half || (ends_message && receive_.front() == nullptr)) tell_now_ = true;
  settle();
}

// --- Waiting.

bool Engine::can_go_on(Side side) const {
  if (over()) return true;
  if (side == Side::kReceive) return receive_.front() != nullptr;
  return send_.has_room(blocked_class_, blocked_cable_);
}

bool Engine::arm(Side side, std::vector<pollfd>& descriptors) {
  std::lock_guard lock(mutex_);
  Waker& waker = side == Side::kSend ? sender_ : receiver_;
  if (can_go_on(side)) return false;
  poll_queues();
  settle();
  if (can_go_on(side)) return false;
  const std::size_t before = descriptors.size();
  for (std::size_t i = 0; i < cables_.size(); ++i) {
    if (!states_[i].alive) continue;
    for (const auto& queue : cables_[i].queues) {
      const int descriptor = queue->wait_descriptor();
      if (descriptor < 0) continue;
      if (!queue->arm()) {
        descriptors.resize(before);
        return false;
      }
      const auto known = [descriptor](const pollfd& other) { return other.fd == descriptor; };
      if (std::none_of(descriptors.begin() + static_cast<std::ptrdiff_t>(before), descriptors.end(), known)) {
        descriptors.push_back({descriptor, POLLIN, 0});
      }
    }
  }
  // Without a descriptor of the device, the peer says on the control socket that something is coming.
  blind_ = descriptors.size() == before;
  waker.asleep = true;
  if (blind_) {
    report_by_control(0, true);
    if (std::isfinite(look_ms(Clock::now()))) service_.ring();
  }
  descriptors.push_back({waker.read_fd, POLLIN, 0});
  return true;
}

void Engine::disarm(Side side) {
  std::lock_guard lock(mutex_);
  Waker& waker = side == Side::kSend ? sender_ : receiver_;
  waker.asleep = false;
  waker.drain();
}

}  // namespace mm::verbs
