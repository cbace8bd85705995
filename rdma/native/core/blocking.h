#pragma once

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "core/deadline.h"
#include "core/link.h"
#include "core/pause.h"

namespace mm {

// Blocking use of one half by itself, for measurements and tests; messages of a group go through core/exchange.h.

// Repeats `step` until it is done: spins for `spin_us` without progress, then blocks. kTimeout at the deadline.
template <typename Step>
Status run_half(Half& half, Step step, Deadline deadline, double spin_us) {
  std::vector<pollfd> descriptors;
  for (;;) {
    Progress progress = step();
    if (progress == Progress::kIdle && spin_us > 0) {
      Spinner spinner(spin_us);
      while (progress == Progress::kIdle && spinner.turn()) progress = step();
    }
    switch (progress) {
      case Progress::kDone: return {};
      case Progress::kMoved: continue;
      case Progress::kFailed: return half.failure();
      case Progress::kIdle: break;
    }
    if (deadline.passed()) return Status(Code::kTimeout, "the deadline passed");
    descriptors.clear();
    if (!half.arm(descriptors)) continue;
    const int polled = ::poll(descriptors.data(), static_cast<nfds_t>(descriptors.size()), deadline.poll_ms());
    const int error = errno;
    half.disarm();
    if (polled < 0 && error != EINTR) return Status(Code::kLocal, "poll failed");
  }
}

// Sends a message in as many frames as the link wants. `header` gives all but the sizes.
inline Status send_message(SendHalf& half, FrameHeader header, std::span<const std::byte> payload, Deadline deadline,
                           double spin_us) {
  header.message_bytes = payload.size();
  const std::size_t limit = half.frame_limit(payload.size());
  std::size_t offset = 0;
  do {
    const auto part = payload.subspan(offset, std::min(limit, payload.size() - offset));
    header.offset = offset;
    header.frame_bytes = static_cast<std::uint32_t>(part.size());
    if (Status status = run_half(half, [&] { return half.try_send(header, part); }, deadline, spin_us); !status.ok()) {
      return status;
    }
    offset += part.size();
  } while (offset < payload.size());
  return {};
}

// Receives a message of exactly that many bytes. kMismatch where another size or offset comes.
inline Status receive_message(ReceiveHalf& half, std::span<std::byte> into, Deadline deadline, double spin_us) {
  std::size_t offset = 0;
  do {
    FrameHeader header;
    if (Status status = run_half(half, [&] { return half.try_header(header); }, deadline, spin_us); !status.ok()) {
      return status;
    }
    if (header.message_bytes != into.size() || header.offset != offset) {
      return Status(Code::kMismatch, "expected byte " + std::to_string(offset) + " of a message of " +
                                         std::to_string(into.size()) + ", got byte " + std::to_string(header.offset) +
                                         " of one of " + std::to_string(header.message_bytes));
    }
    const auto part = into.subspan(offset, header.frame_bytes);
    if (Status status = run_half(half, [&] { return half.try_payload(part); }, deadline, spin_us); !status.ok()) {
      return status;
    }
    offset += part.size();
  } while (offset < into.size());
  return {};
}

}  // namespace mm
