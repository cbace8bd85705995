#pragma once

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

}  // namespace mm
