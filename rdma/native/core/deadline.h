#pragma once

#include <chrono>
#include <cstdint>

namespace mm {

using Clock = std::chrono::steady_clock;

// A point in time that a wait must not pass.
class Deadline {
 public:
  static Deadline after(double seconds) {
    constexpr double kYears = 1e9;  // far beyond any wait, and well within what the clock can hold
    if (!(seconds < kYears)) seconds = kYears;
    return Deadline(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  }
  [[nodiscard]] bool passed(Clock::time_point now = Clock::now()) const { return now >= at_; }
  // Whole milliseconds left, rounded up, at least 0 and at most a minute: for poll().
  [[nodiscard]] int poll_ms() const {
    auto left = std::chrono::duration_cast<std::chrono::microseconds>(at_ - Clock::now()).count();
    if (left <= 0) return 0;
    auto ms = (left + 999) / 1000;
    return ms > 60000 ? 60000 : static_cast<int>(ms);
  }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

}  // namespace mm
