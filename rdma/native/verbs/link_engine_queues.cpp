// What an engine does with its queue pairs: takes what completed, posts what can go, tells the peer.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "verbs/link_bytes.h"
#include "verbs/link_engine.h"

namespace mm::verbs {
namespace {

constexpr std::uint64_t kReportId = std::uint64_t{1} << 62;

}  // namespace

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
  stirred_at_ = Clock::now();
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
  drain(cables_[cable]);
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

}  // namespace mm::verbs
