#include "verbs/link_receive_window.h"

namespace mm::verbs {
namespace {

// Further than this no queue can be ahead.
constexpr std::int32_t kMostAhead = 1 << 20;

}  // namespace

ReceiveWindow::ReceiveWindow(std::uint32_t cables, std::uint32_t queues, std::uint32_t max_outstanding)
    : queue_count_(queues), max_outstanding_(max_outstanding), queues_(std::size_t{cables} * queues) {}

void ReceiveWindow::posted(std::uint32_t cable, std::uint32_t queue, std::uint32_t receives) {
  at(cable, queue).report.posted += receives;
}

bool ReceiveWindow::numbered(std::uint32_t cable, std::uint32_t queue, std::uint32_t queue_number) {
  Queue& of = at(cable, queue);
  const auto ahead = static_cast<std::int32_t>(queue_number - static_cast<std::uint32_t>(of.report.next));
  if (ahead < 0 || ahead > kMostAhead) return false;
  if (ahead > 0) {
    gap_ = true;
    lost_ += static_cast<std::uint64_t>(ahead);
  }
  of.report.next += static_cast<std::uint64_t>(ahead) + 1;
  ++of.whole;
  of.report.lost = of.report.next - of.whole;
  return true;
}

ReceiveWindow::Verdict ReceiveWindow::data(std::uint64_t sequence, const Place& place) {
  if (sequence < arrived_to_) return Verdict::kRepeated;
  if (sequence >= arrived_to_ + max_outstanding_) return Verdict::kImpossible;
  const std::uint64_t index = sequence - taken_to_;
  if (index >= frames_.size()) frames_.resize(index + 1);
  if (frames_[index].has_value()) return Verdict::kRepeated;
  frames_[index] = place;
  while (arrived_to_ - taken_to_ < frames_.size() && frames_[arrived_to_ - taken_to_].has_value()) ++arrived_to_;
  return Verdict::kKept;
}

const ReceiveWindow::Place* ReceiveWindow::front() const {
  return arrived_to_ > taken_to_ ? &*frames_.front() : nullptr;
}

ReceiveWindow::Place ReceiveWindow::take() {
  const Place place = *frames_.front();
  frames_.pop_front();
  ++taken_to_;
  return place;
}

Report ReceiveWindow::report() {
  Report report;
  report.arrived_to = arrived_to_;
  report.known_to = UINT64_MAX;
  for (std::uint64_t i = arrived_to_ - taken_to_; i < frames_.size();) {
    if (!frames_[i].has_value()) {
      ++i;
      continue;
    }
    const std::uint64_t from = i;
    while (i < frames_.size() && frames_[i].has_value()) ++i;
    if (report.ranges.size() == Report::kMostRanges) {
      report.known_to = taken_to_ + from;
      break;
    }
    report.ranges.emplace_back(taken_to_ + from, taken_to_ + i);
  }
  report.queues.reserve(queues_.size());
  for (const Queue& queue : queues_) report.queues.push_back(queue.report);
  gap_ = false;
  return report;
}

}  // namespace mm::verbs
