#pragma once

#include <cstdint>
#include <string>

#include "verbs/queue_pair.h"

namespace mm::verbs {

// Devices that count frames are seen to keep one place of a queue free.
[[nodiscard]] inline std::uint32_t spare_places(const Limits& limits) { return limits.frame_bytes != 0 ? 1 : 0; }

// The queues of one queue pair in the device's units.
struct Depth {
  std::uint64_t send = 0;
  std::uint64_t receive = 0;
  // Of the completion queue: everything may come back at once.
  [[nodiscard]] std::uint64_t completions() const { return send + receive + 1; }
};

[[nodiscard]] Depth depth_of(const Limits& limits, const QueueShape& shape);

// Which limit of the device the shape passes, as what it needs and what there is; empty where it fits.
[[nodiscard]] std::string too_much(const Limits& limits, const QueueShape& shape);

}  // namespace mm::verbs
