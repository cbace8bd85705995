// An engine's service thread, and what it reads on the control socket.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "verbs/link_bytes.h"
#include "verbs/link_engine.h"

namespace mm::verbs {
namespace {

// Rounds of silence from a cable whose peer answers, after which it is given up.
constexpr std::uint32_t kMostFruitless = 6;
// The thread goes on ticking for a while, so that a stream of messages need not wake it each time.
constexpr auto kWarm = std::chrono::seconds(1);
// Where devices wake nobody: looks grow apart with the time since the last sign, so that one is late by a quarter at
// most, and end after some rounds of asking.
constexpr double kLeastLookMs = 0.05;
constexpr double kLookRounds = 4.0;

}  // namespace

void Engine::serve() {
  std::unique_lock lock(mutex_);
  const double idle_ms = settings_.silence_seconds * 1000.0 / 4.0;
  while (!quit_) {
    read_control();
    if (!over()) tick(Clock::now());
    if (!over() && std::isfinite(look_ms(Clock::now()))) poll_queues();
    settle();
    changed_.notify_all();
    if (quit_) break;
    std::array<pollfd, 2> waits{{{service_.read_fd, POLLIN, 0}, {control_.descriptor(), POLLIN, 0}}};
    if (control_.waits()) waits[1].events |= POLLOUT;
    const bool ended = over();
    const double look = look_ms(Clock::now());
    const double ms = std::min(look, warm_ ? std::min(settings_.retransmit_ms, idle_ms) : idle_ms);
    lock.unlock();
    if (!ended && look < 1.0) {
      // poll() counts in milliseconds, and macOS has no finer one.
      if (::poll(waits.data(), 2, 0) == 0) {
        std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(look));
      }
    } else {
      // Once the link is over, only `close` is waited for.
      (void)::poll(waits.data(), ended ? 1 : 2, ended ? -1 : std::max(1, static_cast<int>(ms)));
    }
    lock.lock();
    service_.drain();
    control_.flush();
  }
}

double Engine::look_ms(Clock::time_point now) const {
  const bool waited_for = (sender_.asleep && !can_go_on(Side::kSend)) || (receiver_.asleep && !can_go_on(Side::kReceive));
  const double since = std::chrono::duration<double, std::milli>(now - stirred_at_).count();
  if (!blind_ || over() || !waited_for || since > kLookRounds * settings_.retransmit_ms) {
    return std::numeric_limits<double>::infinity();
  }
  return std::max(kLeastLookMs, since / 4.0);
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
      // It may be ahead of what it tells of: who sleeps is woken once that is there, and by the next word, too.
      stirred_at_ = Clock::now();
      poll_queues();
      if (std::isfinite(look_ms(stirred_at_))) report_by_control(0, true);
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
