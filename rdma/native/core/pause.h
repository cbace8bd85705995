#pragma once

#include <sched.h>

#include <chrono>

#include "core/deadline.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mm {

// Tells the processor that this is a spinning wait.
inline void cpu_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb" ::: "memory");  // longer than yield, which does nothing on Apple silicon
#endif
}

// The first part of a wait: spins for a while, then tells its caller to block. After about a microsecond it gives its
// processor away at every turn: the peer may be waiting for just this one, and where nobody does, it costs little.
class Spinner {
 public:
  explicit Spinner(double spin_us) : start_(Clock::now()), spin_(of_us(spin_us)) {}

  // False: the time is over, block.
  bool turn() {
    const auto spent = Clock::now() - start_;
    if (spent >= spin_) return false;
    if (spent < std::chrono::microseconds(1)) {
      cpu_pause();
    } else {
      ::sched_yield();
    }
    return true;
  }

 private:
  static Clock::duration of_us(double us) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::micro>(us));
  }

  Clock::time_point start_;
  Clock::duration spin_;
};

}  // namespace mm
