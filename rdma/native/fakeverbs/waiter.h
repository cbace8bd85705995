#pragma once

#include <cstdint>
#include <string>

// The descriptor behind a completion channel: readable when another process knocks, or at a time set before. No thread
// stands behind it. Linux only; elsewhere there are no completion channels.
namespace mm::fakeverbs {

class Waiter {
 public:
  // Throws std::system_error; on other systems than Linux always, with ENOTSUP.
  Waiter(const std::string& segment, std::uint32_t channel);
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  ~Waiter();

  [[nodiscard]] int descriptor() const { return all_; }

  // Makes the descriptor readable at that time of the monotonic clock; 0: at no time.
  void set_timer(std::uint64_t machine_ns);

  // Takes back what made it readable.
  void clear();

 private:
  int all_ = -1;  // an epoll of the two others
  int timer_ = -1;
  int knocks_ = -1;
};

// Makes the descriptor of a channel of any process readable. Never blocks; a channel that is gone is no error.
void knock(const std::string& segment, std::uint32_t channel);

}  // namespace mm::fakeverbs
