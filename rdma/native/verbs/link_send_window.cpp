#include "verbs/link_send_window.h"

#include <algorithm>

namespace mm::verbs {
namespace {

constexpr int kMostPatience = 64;  // times the retransmission time

}  // namespace

SendWindow::SendWindow(const Fit& fit, std::chrono::duration<double, std::milli> retransmit,
                       std::uint32_t max_attempts)
    : fit_(fit),
      retransmit_(std::chrono::duration_cast<Clock::duration>(retransmit)),
      max_attempts_(max_attempts),
      queues_(fit.cables * fit.classes.size()),
      cables_(fit.cables),
      slots_(fit.classes.size()),
      free_(fit.classes.size()),
      waiting_of_class_(fit.classes.size()),
      patience_(retransmit_) {
  for (std::uint32_t k = 0; k < fit.classes.size(); ++k) {
    slots_[k].resize(fit.send_slots(k));
    for (std::uint32_t slot = fit.send_slots(k); slot-- > 0;) free_[k].push_back(slot);
    for (std::uint32_t cable = 0; cable < fit.cables; ++cable) at(cable, k).posted = fit.classes[k].receives;
  }
}

std::uint32_t SendWindow::route(std::uint32_t size_class, std::uint32_t pinned, bool oldest,
                                std::uint32_t avoid) const {
  const SizeClass& of = fit_.classes[size_class];
  const std::int64_t kept_back = (oldest ? 0 : fit_.spare_receives) + (size_class == 0 ? kReportReceives : 0);
  const std::uint32_t most_posts =
      size_class == 0 && of.send_requests > kReportBuffers ? of.send_requests - kReportBuffers : of.send_requests;
  std::uint32_t best = kAnyCable;
  for (std::uint32_t cable = 0; cable < fit_.cables; ++cable) {
    const bool allowed = pinned == kAnyCable || pinned == cable;
    if (!allowed || !cables_[cable].alive) continue;
    const Queue& queue = at(cable, size_class);
    if (queue.room() <= kept_back || queue.posts >= most_posts) continue;
    if (best == kAnyCable || best == avoid ||
        (cable != avoid && cables_[cable].flying_bytes < cables_[best].flying_bytes)) {
      best = cable;
    }
  }
  return best;
}

bool SendWindow::has_room(std::uint32_t size_class, std::uint32_t cable) const {
  return frames_.size() < fit_.max_outstanding && !free_[size_class].empty() && waiting_of_class_[size_class] == 0 &&
         route(size_class, cable, frames_.empty(), kAnyCable) != kAnyCable;
}

SendWindow::Posting SendWindow::open(std::uint32_t size_class, std::uint32_t cable) {
  Frame frame;
  frame.size_class = size_class;
  frame.slot = free_[size_class].back();
  frame.pinned = cable;
  free_[size_class].pop_back();
  slots_[size_class][frame.slot].owned = true;
  frames_.push_back(frame);
  Posting posting;
  posting.sequence = opened() - 1;
  posting.size_class = size_class;
  posting.slot = frame.slot;
  return posting;
}

void SendWindow::filled(std::uint64_t sequence, std::uint32_t payload_bytes, WireKind kind) {
  Frame& frame = frames_[sequence - first_];
  frame.payload_bytes = payload_bytes;
  frame.kind = kind;
  frame.state = State::kWaiting;
  waiting_.insert(sequence);
  ++waiting_of_class_[frame.size_class];
}

bool SendWindow::next(Posting& posting) {
  std::uint32_t stuck_classes = 0;  // a bit each
  for (const std::uint64_t sequence : waiting_) {
    Frame& frame = frames_[sequence - first_];
    const std::uint32_t bit = 1U << frame.size_class;
    if ((stuck_classes & bit) != 0) continue;
    // Its buffer must not change while the device reads it for an earlier post.
    const bool readable = slots_[frame.size_class][frame.slot].posts == 0;
    const std::uint32_t pinned = frame.pinned != kAnyCable && cables_[frame.pinned].alive ? frame.pinned : kAnyCable;
    const std::uint32_t cable = readable ? route(frame.size_class, pinned, sequence == first_,
                                                 frame.attempts > 0 ? frame.cable : kAnyCable)
                                         : kAnyCable;
    if (cable == kAnyCable) {
      stuck_classes |= bit;
      continue;
    }
    post(frame, sequence, cable);
    posting.sequence = sequence;
    posting.cable = cable;
    posting.size_class = frame.size_class;
    posting.slot = frame.slot;
    posting.payload_bytes = frame.payload_bytes;
    posting.queue_number = static_cast<std::uint32_t>(frame.queue_number);
    posting.kind = frame.kind;
    waiting_.erase(sequence);  // ends the loop: `sequence` is gone
    return true;
  }
  return false;
}

void SendWindow::post(Frame& frame, std::uint64_t sequence, std::uint32_t cable) {
  Queue& queue = at(cable, frame.size_class);
  frame.state = State::kFlying;
  if (++frame.attempts > 1) ++retransmitted_;
  frame.cable = cable;
  frame.queue_number = queue.next++;
  --waiting_of_class_[frame.size_class];
  ++slots_[frame.size_class][frame.slot].posts;
  ++queue.posts;
  Sent sent;
  sent.sequence = sequence;
  sent.slot = frame.slot;
  queue.sent.push_back(sent);
  cables_[cable].flying_bytes += fit_.classes[frame.size_class].bytes;
}

bool SendWindow::next_report(std::uint32_t cable, std::uint32_t& queue_number) {
  Queue& queue = at(cable, 0);
  if (!cables_[cable].alive || queue.room() <= 0 || queue.posts >= fit_.classes[0].send_requests) return false;
  queue_number = static_cast<std::uint32_t>(queue.next++);
  ++queue.posts;
  queue.sent.emplace_back();
  return true;
}

void SendWindow::completed(std::uint32_t cable, std::uint32_t queue_index, std::uint32_t queue_number,
                           Clock::time_point now) {
  Queue& queue = at(cable, queue_index);
  const std::uint32_t index = queue_number - static_cast<std::uint32_t>(queue.first_sent);
  if (index >= queue.sent.size() || queue.sent[index].completed) return;
  Sent& sent = queue.sent[index];
  sent.completed = true;
  sent.completed_at = now;
  --queue.posts;
  if (sent.sequence != Sent::kReport) {
    --slots_[queue_index][sent.slot].posts;
    release(queue_index, sent.slot);
  }
  forget_done(queue);
}

void SendWindow::forget_done(Queue& queue) {
  while (!queue.sent.empty() && queue.first_sent < queue.next_seen && queue.sent.front().completed) {
    queue.sent.pop_front();
    ++queue.first_sent;
  }
}

void SendWindow::release(std::uint32_t size_class, std::uint32_t slot) {
  const Slot& of = slots_[size_class][slot];
  if (!of.owned && of.posts == 0) free_[size_class].push_back(slot);
}

void SendWindow::arrived(std::uint64_t sequence) {
  if (sequence < first_) return;
  Frame& frame = frames_[sequence - first_];
  if (frame.state == State::kArrived) return;
  if (frame.state == State::kWaiting) {
    waiting_.erase(sequence);
    --waiting_of_class_[frame.size_class];
  } else {
    cables_[frame.cable].flying_bytes -= fit_.classes[frame.size_class].bytes;
  }
  cables_[frame.cable].fruitless = 0;
  frame.state = State::kArrived;
  slots_[frame.size_class][frame.slot].owned = false;
  release(frame.size_class, frame.slot);
  moved_ = true;
  while (!frames_.empty() && frames_.front().state == State::kArrived) {
    frames_.pop_front();
    ++first_;
  }
}

void SendWindow::lose(std::uint64_t sequence) {
  Frame& frame = frames_[sequence - first_];
  cables_[frame.cable].flying_bytes -= fit_.classes[frame.size_class].bytes;
  frame.state = State::kWaiting;
  waiting_.insert(sequence);
  ++waiting_of_class_[frame.size_class];
  if (frame.attempts >= max_attempts_ && hopeless_.empty()) {
    hopeless_ = "frame " + std::to_string(sequence) + " was lost " + std::to_string(frame.attempts) + " times";
  }
}

bool SendWindow::arrived_to(std::uint64_t sequence) {
  if (sequence > opened()) return false;
  while (first_ < sequence) {
    // A frame that is being filled cannot have arrived.
    if (frames_.front().state == State::kFilling) return false;
    arrived(first_);
  }
  return true;
}

bool SendWindow::posted(std::uint32_t cable, std::uint32_t queue_index, std::uint32_t count) {
  Queue& queue = at(cable, queue_index);
  const auto more = static_cast<std::int32_t>(count - static_cast<std::uint32_t>(queue.posted));
  if (more <= 0) return true;
  queue.posted += static_cast<std::uint64_t>(more);
  moved_ = true;
  return queue.posted <= queue.next + fit_.classes[queue_index].receives;
}

void SendWindow::seen(Queue& queue, std::uint64_t next) {
  while (queue.next_seen < next) {
    const std::uint64_t index = queue.next_seen - queue.first_sent;
    if (index < queue.sent.size() && queue.sent[index].lost) --queue.given_up;
    ++queue.next_seen;
  }
  forget_done(queue);
}

bool SendWindow::report(const Report& report, Clock::time_point now) {
  if (report.queues.size() != queues_.size() || !arrived_to(report.arrived_to)) return false;
  for (const auto& [from, to] : report.ranges) {
    if (to > opened()) return false;
    for (std::uint64_t sequence = std::max(from, first_); sequence < to; ++sequence) {
      if (sequence >= first_ && frames_[sequence - first_].state == State::kFilling) return false;
      arrived(sequence);
    }
  }
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    Queue& queue = queues_[i];
    const QueueReport& told = report.queues[i];
    if (told.next > queue.next || told.lost > told.next) return false;
    if (told.posted > queue.next + fit_.classes[i % fit_.classes.size()].receives) return false;
    if (told.posted > queue.posted || told.lost > queue.lost) moved_ = true;
    queue.posted = std::max(queue.posted, told.posted);
    queue.lost = std::max(queue.lost, told.lost);
    if (told.next > queue.next_seen) seen(queue, told.next);
  }
  // The queue went on without them.
  for (std::uint64_t sequence = first_; sequence < std::min(opened(), report.known_to); ++sequence) {
    const Frame& frame = frames_[sequence - first_];
    if (frame.state != State::kFlying || !cables_[frame.cable].alive) continue;
    const QueueReport& told = report.queues[frame.cable * fit_.classes.size() + frame.size_class];
    if (frame.queue_number < told.next) lose(sequence);
  }
  if (probing_ && report.answers == probe_) {
    probing_ = false;
    give_up_silent();
    patience_ = moved_ ? retransmit_ : std::min(2 * patience_, kMostPatience * retransmit_);
    moved_ = false;
    quiet_since_ = now;
  }
  return true;
}

// The peer was asked after these had left, and has them not.
void SendWindow::give_up_silent() {
  for (std::uint32_t cable = 0; cable < fit_.cables; ++cable) {
    if (!cables_[cable].alive) continue;
    bool lost_here = false;
    for (std::uint32_t k = 0; k < fit_.classes.size(); ++k) {
      Queue& queue = at(cable, k);
      // What moves is slow and not lost: sending its tail again would make it slower still. The next answer judges.
      if (queue.next_seen > queue.seen_at_probe) continue;
      for (std::size_t i = 0; i < queue.sent.size(); ++i) {
        Sent& sent = queue.sent[i];
        const std::uint64_t number = queue.first_sent + i;
        if (number < queue.next_seen || !sent.completed || sent.lost) continue;
        if (sent.completed_at + retransmit_ > probed_at_) continue;
        sent.lost = true;
        ++queue.given_up;
        if (sent.sequence == Sent::kReport || sent.sequence < first_) continue;
        const Frame& frame = frames_[sent.sequence - first_];
        if (frame.state != State::kFlying || frame.cable != cable || frame.queue_number != number) continue;
        lose(sent.sequence);
        lost_here = true;
      }
    }
    if (lost_here) ++cables_[cable].fruitless;
  }
}

bool SendWindow::wants_probe(Clock::time_point now, bool blocked) {
  const bool owed = blocked || !frames_.empty();
  if (!owed) {
    owed_ = false;
    patience_ = retransmit_;
    return false;
  }
  if (!owed_) {
    owed_ = true;
    quiet_since_ = now;
  }
  if (moved_) {
    moved_ = false;
    patience_ = retransmit_;
    quiet_since_ = now;
  }
  return !probing_ && now - quiet_since_ >= patience_;
}

std::uint32_t SendWindow::probe(Clock::time_point now) {
  probing_ = true;
  probed_at_ = now;
  for (Queue& queue : queues_) queue.seen_at_probe = queue.next_seen;
  if (++probe_ == 0) ++probe_;
  return probe_;
}

void SendWindow::drop_cable(std::uint32_t cable) {
  if (!cables_[cable].alive) return;
  cables_[cable].alive = false;
  for (std::uint32_t k = 0; k < fit_.classes.size(); ++k) {
    Queue& queue = at(cable, k);
    for (const Sent& sent : queue.sent) {
      if (sent.completed || sent.sequence == Sent::kReport) continue;
      --slots_[k][sent.slot].posts;
      release(k, sent.slot);
    }
    queue.sent.clear();
    queue.first_sent = queue.next;
    queue.posts = 0;
  }
  for (std::uint64_t sequence = first_; sequence < opened(); ++sequence) {
    Frame& frame = frames_[sequence - first_];
    if (frame.state == State::kFlying && frame.cable == cable) {
      frame.attempts = 0;  // it was the cable's fault
      lose(sequence);
    }
  }
}

bool SendWindow::unseen() const {
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    if (!cables_[i / fit_.classes.size()].alive) continue;
    if (queues_[i].next - queues_[i].next_seen > queues_[i].given_up) return true;
  }
  return false;
}

}  // namespace mm::verbs
