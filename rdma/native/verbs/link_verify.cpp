#include <poll.h>

#include <string>
#include <vector>

#include "verbs/link_engine.h"

namespace mm::verbs {

// The echoes go the way of all frames, so that what is verified is what is used: numbers, room, reports.
Status Engine::verify(std::uint64_t own_seed, std::uint64_t peer_seed, Deadline deadline) {
  const auto queues = static_cast<std::uint32_t>(fit_.classes.size());
  const std::uint32_t all = queues * fit_.cables;
  std::uint32_t sent = 0;
  std::uint32_t received = 0;
  FrameHeader header;
  header.kind = FrameKind::kProbe;
  Status why;
  std::vector<pollfd> descriptors;
  const auto failed = [&] { return Status(why.code(), "verifying the cables: " + why.text()); };
  while (sent < all || received < all) {
    bool moved = false;
    if (sent < all) {
      const std::uint32_t k = sent % queues;
      const std::size_t bytes = fit_.classes[k].capacity();
      std::uint64_t sequence = 0;
      std::span<std::byte> buffer;
      const Progress opened = open(bytes, sequence, buffer, why, sent / queues, k);
      if (opened == Progress::kFailed) return failed();
      if (opened == Progress::kDone) {
        header.message_bytes = header.frame_bytes = static_cast<std::uint32_t>(bytes);
        encode_header(header, buffer.subspan<kPrefixBytes, kFrameHeaderBytes>());
        fill_echo_pattern(own_seed + sent, buffer.subspan(kPayloadAt, bytes));
        if (publish(sequence, bytes, WireKind::kEcho, why) == Progress::kFailed) return failed();
        ++sent;
        moved = true;
      }
    }
    if (received < all) {
      std::span<const std::byte> head;
      std::span<const std::byte> payload;
      const Progress came = front(head, payload, why);
      if (came == Progress::kFailed) return failed();
      if (came == Progress::kDone) {
        if (payload.size() != fit_.classes[received % queues].capacity() ||
            !is_echo_pattern(peer_seed + received, payload)) {
          return Status(Code::kCorrupt, cables_[received / queues].name + " altered the pattern that verifies it");
        }
        ++received;
        taken(true);
        moved = true;
      }
    }
    if (moved) continue;
    if (deadline.passed()) {
      return Status(Code::kTimeout, "verifying the cables: the peer's patterns did not all come in time: " +
                                        std::to_string(received) + " of " + std::to_string(all));
    }
    descriptors.clear();
    const bool armed_send = sent < all;
    const bool armed_receive = received < all;
    bool may_block = !armed_send || arm(Side::kSend, descriptors);
    may_block = may_block && (!armed_receive || arm(Side::kReceive, descriptors));
    if (may_block) (void)::poll(descriptors.data(), static_cast<nfds_t>(descriptors.size()), deadline.poll_ms());
    disarm(Side::kSend);
    disarm(Side::kReceive);
  }

  std::unique_lock lock(mutex_);
  control_.send(ControlKind::kEchoed);
  const auto done = [this] { return over() || (echoed_ && send_.all_arrived()); };
  while (!done() && !deadline.passed()) {
    poll_queues();
    settle();
    if (!done()) changed_.wait_for(lock, std::chrono::milliseconds(std::max(1, std::min(deadline.poll_ms(), 2))));
  }
  if (over()) {
    why = status_;
    return failed();
  }
  if (!done()) return Status(Code::kTimeout, "verifying the cables: the peer did not see all patterns in time");
  if (alive() < cables_.size()) {
    for (std::size_t i = 0; i < cables_.size(); ++i) {
      if (!states_[i].alive) return Status(Code::kPeerLost, "verifying the cables: " + cables_[i].name + " failed");
    }
  }
  return {};
}

}  // namespace mm::verbs
