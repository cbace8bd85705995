#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "core/mesh.h"
#include "core/mesh_running.h"

namespace mm {
namespace {

Message label_message() { return {Dtype::kBytes, kAnyShape, "arrays", Operation::kHostLabel}; }
Message bytes_message() { return {Dtype::kBytes, kAnyShape, "bytes", Operation::kHostMessage}; }

Message array_message(const ArrayFacts& facts) {
  std::vector<std::int64_t> shape(facts.shape.begin(), facts.shape.end());
  return {facts.dtype, hash_shape(shape), to_text(std::span(&facts, 1)), Operation::kHostArray};
}

}  // namespace

std::unique_lock<std::mutex> Mesh::only_host(std::mutex& mutex, int peer, const char* what) {
  std::unique_lock lock(mutex, std::try_to_lock);
  if (!lock.owns_lock()) {
    refuse(what, "another thread is in a host transfer with rank " + std::to_string(peer) +
                     " in this direction: use one thread for each");
  }
  return lock;
}

void Mesh::host_send(int peer, std::span<const OutgoingArray> arrays, double timeout_seconds) {
  constexpr const char* kWhat = "host_send";
  Running running(*this, kWhat);
  Lanes& lanes = lanes_of(peer, kWhat);
  auto lock = only_host(lanes.host_send, peer, kWhat);
  std::vector<std::byte> label;
  if (Status status = write_label(arrays, label); !status.ok()) refuse(kWhat, status.text());
  refuse_farewell(peer, kWhat);
  const Deadline deadline = Deadline::after(timeout_seconds);
  auto send = [&](const Message& message, std::span<const std::byte> payload) {
    Exchange exchange(stopper_, settings_.spin_us);
    send_parts(exchange, lanes.point_to_point, message, payload);
    run(exchange, kWhat, deadline, timeout_seconds);
  };
  send(label_message(), label);
  std::size_t total = 0;
  for (const auto& array : arrays) total += array.bytes.size();
  if (total <= kInlineBytes) return;
  for (const auto& array : arrays) {
    if (!array.bytes.empty()) send(array_message(array.facts), array.bytes);
  }
}

void Mesh::host_receive(int peer, const Place& place, double timeout_seconds) {
  constexpr const char* kWhat = "host_receive";
  Running running(*this, kWhat);
  Lanes& lanes = lanes_of(peer, kWhat);
  auto lock = only_host(lanes.host_receive, peer, kWhat);
  const Deadline deadline = Deadline::after(timeout_seconds);
  std::vector<std::byte> bytes;
  {
    Exchange exchange(stopper_, settings_.spin_us);
    exchange.receive(*lanes.point_to_point.front(), label_message(), bytes, kMostLabelBytes);
    run(exchange, kWhat, deadline, timeout_seconds);
  }
  Label label;
  if (Status status = read_label(bytes, label); !status.ok()) fail(kWhat, std::move(status), peer);
  std::vector<std::span<std::byte>> into;
  if (Status status = place_parcel(place, label, into); !status.ok()) {
    // What is this side's fault names no peer.
    const int blamed = status.code() == Code::kLocal ? -1 : peer;
    fail(kWhat, std::move(status), blamed);
  }
  std::span<const std::byte> rest = label.bytes;
  for (std::size_t i = 0; i < into.size(); ++i) {
    if (into[i].empty()) continue;
    if (label.inlined) {
      std::copy_n(rest.begin(), into[i].size(), into[i].begin());
      rest = rest.subspan(into[i].size());
      continue;
    }
    Exchange exchange(stopper_, settings_.spin_us);
    receive_parts(exchange, lanes.point_to_point, array_message(label.arrays[i]), into[i]);
    run(exchange, kWhat, deadline, timeout_seconds);
  }
}

Status Mesh::place_parcel(const Place& place, const Label& label, std::vector<std::span<std::byte>>& into) {
  try {
    if (Status status = place(label, into); !status.ok()) return status;
  } catch (const std::exception& error) {
    return {Code::kLocal, "no memory for " + to_text(label.arrays) + ": " + error.what()};
  }
  bool fits = into.size() == label.sizes.size();
  for (std::size_t i = 0; fits && i < into.size(); ++i) fits = into[i].size() == label.sizes[i];
  if (!fits) return {Code::kLocal, "the memory given for " + to_text(label.arrays) + " is of another size"};
  return {};
}

void Mesh::host_send_message(int peer, std::span<const std::byte> payload, double timeout_seconds) {
  constexpr const char* kWhat = "host_send_message";
  Running running(*this, kWhat);
  Lanes& lanes = lanes_of(peer, kWhat);
  auto lock = only_host(lanes.host_send, peer, kWhat);
  if (payload.size() > kMostMessageBytes) {
    refuse(kWhat, std::to_string(payload.size()) + " bytes are more than the " + std::to_string(kMostMessageBytes) +
                      " of the largest host message");
  }
  refuse_farewell(peer, kWhat);
  Exchange exchange(stopper_, settings_.spin_us);
  // On one link, because its size is not known on the other side.
  exchange.send(*lanes.point_to_point.front(), bytes_message(), payload);
  run(exchange, kWhat, Deadline::after(timeout_seconds), timeout_seconds);
}

std::vector<std::byte> Mesh::host_receive_message(int peer, double timeout_seconds) {
  constexpr const char* kWhat = "host_receive_message";
  Running running(*this, kWhat);
  Lanes& lanes = lanes_of(peer, kWhat);
  auto lock = only_host(lanes.host_receive, peer, kWhat);
  std::vector<std::byte> bytes;
  Exchange exchange(stopper_, settings_.spin_us);
  exchange.receive(*lanes.point_to_point.front(), bytes_message(), bytes, kMostMessageBytes);
  run(exchange, kWhat, Deadline::after(timeout_seconds), timeout_seconds);
  return bytes;
}

}  // namespace mm
