#include "core/exchange.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "core/pause.h"
#include "core/pipe.h"

namespace mm {
namespace {

std::string ranks(std::vector<int> peers) {
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  std::string text = peers.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < peers.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(peers[i]);
  return text;
}

}  // namespace

Stopper::Stopper() { make_pipe(read_fd_, write_fd_, "ending a group's waits"); }

Stopper::~Stopper() {
  ::close(read_fd_);
  ::close(write_fd_);
}

void Stopper::stop() {
  if (stopped_.exchange(true, std::memory_order_acq_rel)) return;
  char byte = 1;
  // The pipe is empty, so one byte always fits; nobody ever reads it, so that it wakes all who poll.
  [[maybe_unused]] auto written = ::write(write_fd_, &byte, 1);
}

void Exchange::send(Channel& channel, const Message& message, std::span<const std::byte> payload) {
  sends_.push_back(std::make_unique<Channel::Sending>(channel, message, payload));
}

void Exchange::receive(Channel& channel, const Message& expected, std::span<std::byte> into) {
  receives_.push_back(std::make_unique<Channel::Receiving>(channel, expected, into));
}

void Exchange::receive(Channel& channel, const Message& expected, std::vector<std::byte>& into,
                       std::size_t most_bytes) {
  receives_.push_back(std::make_unique<Channel::Receiving>(channel, expected, into, most_bytes));
}

Exchange::Outcome Exchange::run(Deadline deadline) {
  Outcome failed;
  // One round over all that is not done; each gets one turn. True where something moved.
  auto turn = [&failed](auto& operations) {
    bool moved = false;
    for (std::size_t i = 0; i < operations.size();) {
      switch (operations[i]->progress()) {
        case Progress::kDone:
          moved = true;
          operations.erase(operations.begin() + static_cast<std::ptrdiff_t>(i));
          continue;
        case Progress::kMoved: moved = true; break;
        case Progress::kIdle: break;
        case Progress::kFailed:
          failed = {operations[i]->failure(), operations[i]->peer()};
          return false;
      }
      ++i;
    }
    return moved;
  };

  const auto spin = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::micro>(spin_us_));
  bool idle = false;
  Clock::time_point idle_since;
  while (true) {
    bool moved = turn(sends_);
    if (failed.status.ok()) moved = turn(receives_) || moved;
    if (!failed.status.ok()) return failed;
    if (sends_.empty() && receives_.empty()) return {};
    if (stopper_.stopped()) return {Status(Code::kAborted, "the group was stopped"), -1};
    auto now = Clock::now();
    if (deadline.passed(now)) return timed_out();
    if (moved) {
      idle = false;
      continue;
    }
    if (!idle) {
      idle = true;
      idle_since = now;
    }
    if (now - idle_since < spin) {
      // As `Spinner`: the peer may be waiting for just this processor.
      if (now - idle_since < std::chrono::microseconds(1)) {
        cpu_pause();
      } else {
        ::sched_yield();
      }
      continue;
    }
    // After a wait whatever woke it, one more round before the next: the spin is for answers that come at once.
    if (block(deadline)) idle = false;
  }
}

Exchange::Outcome Exchange::timed_out() const {
  std::vector<int> from;
  std::vector<int> to;
  for (const auto& receive : receives_) from.push_back(receive->peer());
  for (const auto& send : sends_) to.push_back(send->peer());
  std::string text = "the deadline passed while waiting";
  if (!from.empty()) text += " for a message from " + ranks(from);
  if (!to.empty()) text += std::string(from.empty() ? " for " : " and for ") + ranks(to) + " to take one";
  std::vector<int> all = from;
  all.insert(all.end(), to.begin(), to.end());
  std::sort(all.begin(), all.end());
  bool one = all.front() == all.back();
  return {Status(Code::kTimeout, std::move(text)), one ? all.front() : -1};
}

// Blocks until something may move, the stopper stops or the deadline passes. True where a link woke it.
bool Exchange::block(Deadline deadline) {
  std::vector<pollfd> descriptors{{stopper_.descriptor(), POLLIN, 0}};
  std::size_t armed_sends = 0;
  std::size_t armed_receives = 0;
  bool may_block = true;
  while (may_block && armed_sends < sends_.size()) may_block = sends_[armed_sends++]->half().arm(descriptors);
  while (may_block && armed_receives < receives_.size()) {
    may_block = receives_[armed_receives++]->half().arm(descriptors);
  }
  int ready = 0;
  // Interrupted by a signal: another round, whose look at the clock bounds it.
  if (may_block) ready = ::poll(descriptors.data(), static_cast<nfds_t>(descriptors.size()), deadline.poll_ms());
  for (std::size_t i = 0; i < armed_sends; ++i) sends_[i]->half().disarm();
  for (std::size_t i = 0; i < armed_receives; ++i) receives_[i]->half().disarm();
  return !may_block || ready > 0;
}

}  // namespace mm
