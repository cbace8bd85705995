#include "verbs/queue_depth.h"

namespace mm::verbs {
namespace {

// Devices say zero where they have no bound.
bool passes(std::uint64_t needed, std::uint64_t most) {
  return most != 0 && needed > most;
}

}  // namespace

Depth depth_of(const Limits& limits, const QueueShape& shape) {
  const std::uint64_t each = request_places(limits, shape.message_bytes);
  const std::uint64_t spare = spare_places(limits);
  return {shape.send_requests * each + spare, shape.receive_requests * each + spare};
}

std::string too_much(const Limits& limits, const QueueShape& shape) {
  const Depth depth = depth_of(limits, shape);
  if (passes(shape.message_bytes, limits.max_message_bytes)) {
    return "messages of " + std::to_string(shape.message_bytes) + " bytes, the device sends at most " +
           std::to_string(limits.max_message_bytes);
  }
  if (passes(depth.send, limits.max_send_requests)) {
    return std::to_string(depth.send) + " places for sends, the device has " +
           std::to_string(limits.max_send_requests);
  }
  if (passes(depth.receive, limits.max_receive_requests)) {
    return std::to_string(depth.receive) + " places for receives, the device has " +
           std::to_string(limits.max_receive_requests);
  }
  if (passes(depth.completions(), limits.max_completions)) {
    return std::to_string(depth.completions()) + " completions, the device holds " +
           std::to_string(limits.max_completions);
  }
  return {};
}

}  // namespace mm::verbs
