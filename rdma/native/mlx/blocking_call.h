#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace mm {

// A call that blocks without the GIL, counted from before it lets the GIL go until it has it again: a thread that asks
// for the GIL once the interpreter is ending is ended there, which a C++ frame does not survive.
class Blocking {
 public:
  Blocking() {
    std::lock_guard lock(mutex_);
    ++calls_;
  }
  ~Blocking() {
    std::lock_guard lock(mutex_);
    if (--calls_ == 0) none_.notify_all();
  }
  Blocking(const Blocking&) = delete;
  Blocking& operator=(const Blocking&) = delete;

  // Waits without the GIL until there is none, for a bounded time.
  static void wait_for_none() {
    std::unique_lock lock(mutex_);
    none_.wait_for(lock, std::chrono::seconds(2), [] { return calls_ == 0; });
  }

 private:
  static inline std::mutex mutex_;
  static inline std::condition_variable none_;
  static inline int calls_ = 0;
};

}  // namespace mm
