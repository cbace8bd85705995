#include <algorithm>
#include <cstring>
#include <vector>

#include "core/mesh.h"
#include "core/mesh_running.h"

// The collectives of a group; see docs/transport.md for which takes which way.
namespace mm {
namespace {

std::span<const std::byte> piece(std::span<const std::byte> part, std::size_t at, std::size_t most) {
  if (at >= part.size()) return {};
  return part.subspan(at, std::min(most, part.size() - at));
}

Operation operation_of(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum: return Operation::kAllSum;
    case Reduction::kMax: return Operation::kAllMax;
    case Reduction::kMin: return Operation::kAllMin;
  }
  return Operation::kAllSum;
}

}  // namespace

void Mesh::all_reduce(Reduction reduction, Message message, std::span<const std::byte> in, std::span<std::byte> out) {
  message.operation = operation_of(reduction);
  const char* what = name_of(message.operation).data();
  Running running(*this, what);
  std::lock_guard collective(collective_mutex_);
  refuse_collective(what, in.size() == out.size());
  Deadline deadline = Deadline::after(timeout());
  if (size_ == 1) {
    if (in.data() != out.data() && !in.empty()) std::memcpy(out.data(), in.data(), in.size());
    return;
  }
  if (in.size() <= kOneHopBytes) return one_hop(reduction, message, in, out, deadline);

  // Each rank reduces one part of the elements, directly from all ranks; then each sends its part to all.
  std::size_t element = size_of(message.dtype);
  std::size_t elements = in.size() / element;
  std::vector<std::size_t> bounds;
  auto ranks = static_cast<std::size_t>(size_);
  for (std::size_t i = 0; i <= ranks; ++i) bounds.push_back(elements * i / ranks * element);
  auto part = [&](int of) {
    auto i = static_cast<std::size_t>(of);
    return out.subspan(bounds[i], bounds[i + 1] - bounds[i]);
  };
  reduce_part(reduction, message, in, bounds, part(rank_), deadline);
  Exchange exchange(stopper_, settings_.spin_us);
  for (auto& [peer, lanes] : peers_) {
    send_parts(exchange, lanes.collective, message, part(rank_));
    receive_parts(exchange, lanes.collective, message, part(peer));
  }
  run(exchange, what, deadline, timeout());
}

void Mesh::one_hop(Reduction reduction, const Message& message, std::span<const std::byte> in,
                   std::span<std::byte> out, Deadline deadline) {
  Exchange exchange(stopper_, settings_.spin_us);
  for (auto& [peer, lanes] : peers_) {
    send_parts(exchange, lanes.collective, message, in);
    receive_parts(exchange, lanes.collective, message, {scratch_of(peer), in.size()});
  }
  run(exchange, name_of(message.operation).data(), deadline, timeout());
  std::vector<std::span<const std::byte>> inputs;
  for (int from = 0; from < size_; ++from) {
    if (from == rank_) {
      inputs.push_back(in);
    } else {
      inputs.emplace_back(scratch_of(from), in.size());
    }
  }
  reduce(reduction, message.dtype, inputs, out);
}

// Reduces this rank's part of all ranks' `in` into `out`, block by block: the scratch is bounded, and while one rank
// still reduces a block the others' next one fills the links' buffers.
void Mesh::reduce_part(Reduction reduction, const Message& message, std::span<const std::byte> in,
                       const std::vector<std::size_t>& bounds, std::span<std::byte> out, Deadline deadline) {
  std::size_t longest = 0;
  auto part = [&](int of) {
    auto i = static_cast<std::size_t>(of);
    return in.subspan(bounds[i], bounds[i + 1] - bounds[i]);
  };
  for (int of = 0; of < size_; ++of) longest = std::max(longest, part(of).size());
  for (std::size_t at = 0; at == 0 || at < longest; at += kBlockBytes) {
    auto mine = piece(part(rank_), at, kBlockBytes);
    Exchange exchange(stopper_, settings_.spin_us);
    std::vector<std::span<const std::byte>> inputs(static_cast<std::size_t>(size_));
    inputs[static_cast<std::size_t>(rank_)] = mine;
    for (auto& [peer, lanes] : peers_) {
      // A first block is sent even where it is empty, so that shapes are compared.
      auto theirs = piece(part(peer), at, kBlockBytes);
      if (at == 0 || !theirs.empty()) send_parts(exchange, lanes.collective, message, theirs);
      std::span<std::byte> scratch(scratch_of(peer), mine.size());
      if (at == 0 || !mine.empty()) receive_parts(exchange, lanes.collective, message, scratch);
      inputs[static_cast<std::size_t>(peer)] = scratch;
    }
    run(exchange, name_of(message.operation).data(), deadline, timeout());
    if (!mine.empty()) reduce(reduction, message.dtype, inputs, out.subspan(at, mine.size()));
  }
}

void Mesh::all_gather(Message message, std::span<const std::byte> in, std::span<std::byte> out) {
  if (message.operation != Operation::kSplit) message.operation = Operation::kAllGather;
  const char* what = name_of(message.operation).data();
  Running running(*this, what);
  std::lock_guard collective(collective_mutex_);
  refuse_collective(what, out.size() == in.size() * static_cast<std::size_t>(size_));
  Deadline deadline = Deadline::after(timeout());
  auto part = [&](int of) { return out.subspan(static_cast<std::size_t>(of) * in.size(), in.size()); };
  Exchange exchange(stopper_, settings_.spin_us);
  for (auto& [peer, lanes] : peers_) {
    send_parts(exchange, lanes.collective, message, in);
    receive_parts(exchange, lanes.collective, message, part(peer));
  }
  if (!in.empty()) std::memcpy(part(rank_).data(), in.data(), in.size());
  run(exchange, what, deadline, timeout());
}

void Mesh::sum_scatter(Message message, std::span<const std::byte> in, std::span<std::byte> out) {
  message.operation = Operation::kSumScatter;
  const char* what = name_of(message.operation).data();
  Running running(*this, what);
  std::lock_guard collective(collective_mutex_);
  refuse_collective(what, in.size() == out.size() * static_cast<std::size_t>(size_));
  Deadline deadline = Deadline::after(timeout());
  std::vector<std::size_t> bounds;
  for (std::size_t i = 0; i <= static_cast<std::size_t>(size_); ++i) bounds.push_back(i * out.size());
  reduce_part(Reduction::kSum, message, in, bounds, out, deadline);
}

std::byte* Mesh::scratch_of(int peer) {
  return scratch_.data() + scratch_stride_ * static_cast<std::size_t>(peer < rank_ ? peer : peer - 1);
}

}  // namespace mm
