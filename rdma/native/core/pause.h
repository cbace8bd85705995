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
  explicit Spinner(double spin_us)
      : until_(Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::micro>(spin_us))) {}

  // False: the time is over, block.
  bool turn() {
    if (turns_ < kPauses) {
      ++turns_;
      cpu_pause();
      return true;
    }
    ::sched_yield();
    return Clock::now() < until_;
  }

 private:
  static constexpr int kPauses = 32;
  Clock::time_point until_;
  int turns_ = 0;
};

}  // namespace mm
