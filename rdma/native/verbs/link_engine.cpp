#include "verbs/link_engine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <new>

#include "core/copy.h"
#include "core/pipe.h"
#include "verbs/link_bytes.h"

namespace mm::verbs {
namespace {

constexpr std::uint64_t kReportId = std::uint64_t{1} << 62;
// For queue pairs to give back what was posted, all together.
constexpr double kDrainSeconds = 0.5;
// Rounds of silence from a cable whose peer answers, after which it is given up.
constexpr std::uint32_t kMostFruitless = 6;
// The service thread goes on ticking for a while, so that a stream of messages need not wake it each time.
constexpr auto kWarm = std::chrono::seconds(1);

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
  double left = kDrainSeconds;
  for (std::size_t i = 0; i < cables_.size(); ++i) {
    if (!states_[i].alive) continue;
    for (const auto& queue : cables_[i].queues) {
      const auto start = Clock::now();
      (void)queue->drain(left);
      left = std::max(0.0, left - std::chrono::duration<double>(Clock::now() - start).count());
    }
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
  if (descriptors.size() == before) report_by_control(0, true);
  waker.asleep = true;
  descriptors.push_back({waker.read_fd, POLLIN, 0});
  return true;
}

void Engine::disarm(Side side) {
  std::lock_guard lock(mutex_);
  Waker& waker = side == Side::kSend ? sender_ : receiver_;
  waker.asleep = false;
  waker.drain();
}

// --- What queue pairs say.

void Engine::poll_queues() {
  std::array<Completion, 32> done;
  for (std::uint32_t cable = 0; cable < cables_.size(); ++cable) {
    for (std::uint32_t k = 0; k < fit_.classes.size() && states_[cable].alive; ++k) {
      QueuePair& queue = *cables_[cable].queues[k];
      std::size_t count = 0;
      do {
        count = queue.poll(done);
        for (std::size_t i = 0; i < count && states_[cable].alive; ++i) on_completion(cable, k, done[i]);
      } while (count == done.size() && states_[cable].alive);
      if (states_[cable].alive && !queue.failure().ok()) lose_cable(cable, queue.failure().text());
    }
  }
}

void Engine::on_completion(std::uint32_t cable, std::uint32_t queue, const Completion& completion) {
  if (!completion.ok) {
    lose_cable(cable, std::string(completion.receive ? "a receive" : "a send") + " completed with status " +
                          std::to_string(completion.status));
    return;
  }
  if (completion.receive) {
    on_received(cable, queue, static_cast<std::uint32_t>(completion.id), completion.bytes);
    return;
  }
  if ((completion.id & kReportId) != 0) {
    states_[cable].report_buffers |= 1U << ((completion.id >> 32) & (kReportBuffers - 1));
  }
  send_.completed(cable, queue, static_cast<std::uint32_t>(completion.id), Clock::now());
}

void Engine::on_received(std::uint32_t cable, std::uint32_t queue, std::uint32_t slot, std::uint32_t bytes) {
  const SizeClass& of = fit_.classes[queue];
  const auto buffer = at(fit_.receive_offset(cable, queue, slot), of.bytes);
  Prefix prefix;
  if (bytes > of.bytes || !decode_prefix(buffer.first(bytes), prefix) || prefix.link != link_ ||
      prefix.cable != cable || prefix.queue != queue || !receive_.numbered(cable, queue, prefix.queue_number)) {
    ++counts_.broken;
    receive_.broken();
    repost(cable, queue, slot);
    return;
  }
  send_.came(cable);
  bool possible = send_.arrived_to(prefix.arrived_to);
  for (std::uint32_t k = 0; k < fit_.classes.size(); ++k) possible &= send_.posted(cable, k, prefix.posted[k]);
  bool keep = false;
  if (prefix.kind == WireKind::kReport) {
    Report report;
    possible &= decode_report(buffer.subspan(kPayloadAt, prefix.payload_bytes), report) &&
                send_.report(report, Clock::now());
  } else {
    switch (receive_.data(prefix.sequence, {cable, queue, slot, prefix.payload_bytes})) {
      case ReceiveWindow::Verdict::kKept: keep = true; break;
      case ReceiveWindow::Verdict::kRepeated:
        ++counts_.repeated;
        tell_now_ = true;
        break;
      case ReceiveWindow::Verdict::kImpossible: possible = false; break;
    }
  }
  if (!keep) {
    repost(cable, queue, slot);
    receive_.reposted(cable, queue);
  }
  if (!possible) fail(Status(Code::kCorrupt, "the peer counts frames that cannot be, on " + cables_[cable].name));
}

void Engine::repost(std::uint32_t cable, std::uint32_t queue, std::uint32_t slot) {
  if (!states_[cable].alive) return;
  const Status posted = cables_[cable].queues[queue]->post_receive(slot, fit_.receive_offset(cable, queue, slot),
                                                                   fit_.classes[queue].bytes);
  if (!posted.ok()) lose_cable(cable, "a receive was refused: " + posted.text());
}

// --- What follows.

void Engine::settle() {
  SendWindow::Posting posting;
  while (!over() && send_.next(posting)) transmit(posting);
  if (!over() && !send_.hopeless().empty()) {
    fail(Status(Code::kPeerLost, send_.hopeless() + ", although the peer lives: " + cables_[0].name));
  }
  if (!over() && receive_.gap()) {
    report_by_control(0, false);
  } else if (!over() && tell_now_ && !report_by_cable()) {
    report_by_control(0, false);
  }
  tell_now_ = false;
  if (!control_.failure().ok()) fail(control_.failure(), false);
  if (control_.waits()) service_.ring();
  if (sender_.asleep && can_go_on(Side::kSend)) sender_.ring();
  if (receiver_.asleep && can_go_on(Side::kReceive)) receiver_.ring();
}

Prefix Engine::prefix(std::uint32_t cable, std::uint32_t queue, std::uint32_t queue_number) const {
  Prefix prefix;
  prefix.cable = static_cast<std::uint8_t>(cable);
  prefix.queue = static_cast<std::uint8_t>(queue);
  prefix.link = link_;
  prefix.queue_number = queue_number;
  prefix.arrived_to = receive_.arrived_to();
  for (std::uint32_t k = 0; k < fit_.classes.size(); ++k) {
    prefix.posted[k] = static_cast<std::uint32_t>(receive_.posted_at(cable, k));
  }
  return prefix;
}

void Engine::transmit(const SendWindow::Posting& posting) {
  const std::uint32_t k = posting.size_class;
  Prefix head = prefix(posting.cable, k, posting.queue_number);
  head.kind = posting.kind;
  head.payload_bytes = posting.payload_bytes;
  head.sequence = posting.sequence;
  const std::size_t offset = fit_.send_offset(k, posting.slot);
  const std::uint32_t bytes = fit_.wire_bytes(k, posting.payload_bytes);
  encode_prefix(head, at(offset, fit_.classes[k].bytes), bytes);
  const Status posted = cables_[posting.cable].queues[k]->post_send(posting.queue_number, offset, bytes);
  if (!posted.ok()) {
    lose_cable(posting.cable, "a send was refused: " + posted.text());
    return;
  }
  posted_one();
}

bool Engine::report_by_cable() {
  for (std::uint32_t cable = 0; cable < cables_.size(); ++cable) {
    CableState& state = states_[cable];
    std::uint32_t queue_number = 0;
    if (!state.alive || state.report_buffers == 0 || !send_.next_report(cable, queue_number)) continue;
    const auto slot = static_cast<std::uint32_t>(std::countr_zero(state.report_buffers));
    state.report_buffers &= ~(1U << slot);
    const std::string bytes = encode_report(receive_.report());
    Prefix head = prefix(cable, 0, queue_number);
    head.kind = WireKind::kReport;
    head.payload_bytes = static_cast<std::uint32_t>(bytes.size());
    const std::size_t offset = fit_.report_offset(cable, slot);
    const auto buffer = at(offset, fit_.classes[0].bytes);
    const std::uint32_t wire_bytes = fit_.wire_bytes(0, bytes.size());
    std::memcpy(buffer.data() + kPayloadAt, bytes.data(), bytes.size());
    encode_prefix(head, buffer, wire_bytes);
    const std::uint64_t id = kReportId | std::uint64_t{slot} << 32 | queue_number;
    const Status posted = cables_[cable].queues[0]->post_send(id, offset, wire_bytes);
    if (!posted.ok()) {
      lose_cable(cable, "a send was refused: " + posted.text());
      continue;
    }
    ++counts_.reports;
    for (CableState& of : states_) std::fill(of.owed.begin(), of.owed.end(), 0);
    posted_one();
    return true;
  }
  return false;
}

void Engine::report_by_control(std::uint32_t answers, bool asleep) {
  Report report = receive_.report();
  report.answers = answers;
  report.asleep = asleep;
  control_.send(ControlKind::kReport, encode_report(report));
  said_at_ = Clock::now();
  for (CableState& of : states_) std::fill(of.owed.begin(), of.owed.end(), 0);
}

void Engine::posted_one() {
  ++posts_since_wake_;
  if (peer_asleep_) wake_peer();
}

void Engine::wake_peer() {
  peer_asleep_ = false;
  posts_since_wake_ = 0;
  control_.send(ControlKind::kWake);
  said_at_ = Clock::now();
}

void Engine::lose_cable(std::uint32_t cable, const std::string& why, bool tell) {
  if (!states_[cable].alive) return;
  states_[cable].alive = false;
  double left = kDrainSeconds;
  for (const auto& queue : cables_[cable].queues) {
    const auto start = Clock::now();
    (void)queue->drain(left);
    left = std::max(0.0, left - std::chrono::duration<double>(Clock::now() - start).count());
  }
  send_.drop_cable(cable);
  if (alive() > 0) {
    if (tell) {
      control_.send(ControlKind::kCableDown,
                    ByteWriter().number(static_cast<std::uint8_t>(cable)).text(why).bytes());
      said_at_ = Clock::now();
    }
    return;
  }
  // A peer that closed explains it better.
  (void)control_.read();
  ControlMessage message;
  while (!over() && control_.next(message)) {
    if (message.kind == ControlKind::kEnd) on_control(message);
  }
  if (!control_.failure().ok()) fail(control_.failure(), false);
  fail(Status(Code::kPeerLost, "the last cable to the peer, " + cables_[cable].name + ", failed: " + why));
}

void Engine::fail(Status why, bool tell) {
  if (over()) return;
  if (tell) {
    control_.send(ControlKind::kEnd,
                  ByteWriter().number(static_cast<std::uint8_t>(why.code())).text(why.text()).bytes());
  }
  status_ = std::move(why);
  if (sender_.asleep) sender_.ring();
  if (receiver_.asleep) receiver_.ring();
  service_.ring();
  changed_.notify_all();
}

void Engine::keep_warm() {
  if (warm_) return;
  warm_ = true;
  warm_since_ = Clock::now();
  service_.ring();
}

// --- The service thread.

void Engine::serve() {
  std::unique_lock lock(mutex_);
  const double idle_ms = settings_.silence_seconds * 1000.0 / 4.0;
  while (!quit_) {
    read_control();
    if (!over()) tick(Clock::now());
    settle();
    changed_.notify_all();
    if (quit_) break;
    std::array<pollfd, 2> waits{{{service_.read_fd, POLLIN, 0}, {control_.descriptor(), POLLIN, 0}}};
    if (control_.waits()) waits[1].events |= POLLOUT;
    const bool ended = over();
    const double ms = warm_ ? std::min(settings_.retransmit_ms, idle_ms) : idle_ms;
    lock.unlock();
    // Once the link is over, only `close` is waited for.
    (void)::poll(waits.data(), ended ? 1 : 2, ended ? -1 : std::max(1, static_cast<int>(ms)));
    lock.lock();
    service_.drain();
    control_.flush();
  }
}

void Engine::read_control() {
  if (over()) return;
  const bool going = control_.read();
  ControlMessage message;
  while (!over() && control_.next(message)) {
    heard_at_ = Clock::now();
    on_control(message);
  }
  if (!going && !over()) {
    poll_queues();  // what arrived before the end is still given
    fail(control_.failure(), false);
  }
}

void Engine::on_control(const ControlMessage& message) {
  ByteReader in(message.view());
  bool sound = true;
  switch (message.kind) {
    case ControlKind::kReport: {
      Report report;
      sound = decode_report(message.view(), report);
      poll_queues();
      if (over()) return;
      sound = sound && send_.report(report, Clock::now());
      if (!sound) break;
      if (report.asleep) {
        peer_asleep_ = true;
        // Once for each post at most: what was lost is found by asking, and not by waking it again and again.
        if (posts_since_wake_ > 0 && send_.unseen()) wake_peer();
      }
      if (report.answers == 0) break;
      for (std::uint32_t cable = 0; cable < cables_.size() && !over(); ++cable) {
        if (!states_[cable].alive || send_.fruitless(cable) == 0) continue;
        if (!cables_[cable].device->port_active()) {
          lose_cable(cable, "its port is down");
        } else if (send_.fruitless(cable) >= kMostFruitless) {
          lose_cable(cable, "it carries nothing, although the peer answers");
        }
      }
      break;
    }
    case ControlKind::kProbe: {
      const auto number = in.number<std::uint32_t>();
      sound = in.complete();
      poll_queues();
      if (!over()) report_by_control(number, false);
      break;
    }
    case ControlKind::kWake:
      if (sender_.asleep) sender_.ring();
      if (receiver_.asleep) receiver_.ring();
      break;
    case ControlKind::kAlive: break;
    case ControlKind::kEchoed: echoed_ = true; break;
    case ControlKind::kCableDown: {
      const auto cable = in.number<std::uint8_t>();
      const std::string why = in.text();
      sound = in.complete() && cable < cables_.size();
      if (!sound) break;
      poll_queues();
      lose_cable(cable, "the peer says: " + why, false);
      break;
    }
    case ControlKind::kEnd: {
      const auto code = in.number<std::uint8_t>();
      const std::string why = in.text();
      sound = in.complete();
      poll_queues();
      fail(Status(Code::kPeerLost, code == 0 ? why : "the peer gave up: " + why), false);
      break;
    }
    default: sound = false;
  }
  if (!sound) {
    fail(Status(Code::kCorrupt, "the peer sent a control message that cannot be, of kind " +
                                    std::to_string(static_cast<int>(message.kind))));
  }
}

void Engine::tick(Clock::time_point now) {
  const std::chrono::duration<double> silent = now - heard_at_;
  if (silent.count() > settings_.silence_seconds) {
    poll_queues();
    fail(Status(Code::kPeerLost, "the peer has said nothing for " + std::to_string(silent.count()) + " s"));
    return;
  }
  if (std::chrono::duration<double>(now - said_at_).count() >= settings_.silence_seconds / 4.0) {
    control_.send(ControlKind::kAlive);
    said_at_ = now;
  }
  const bool owed = blocked_ || !send_.all_arrived();
  if (owed) {
    poll_queues();
    settle();
    if (over()) return;
    warm_ = true;
    warm_since_ = now;
  } else if (warm_ && now - warm_since_ > kWarm) {
    warm_ = false;
  }
  if (send_.wants_probe(now, blocked_)) {
    control_.send(ControlKind::kProbe, ByteWriter().number(send_.probe(now)).bytes());
    said_at_ = now;
  }
}

}  // namespace mm::verbs
