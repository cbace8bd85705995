#include "core/mesh.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "core/mesh_running.h"

namespace mm {
namespace {

// A link may end a moment before the side socket says why; a reason is worth so long a wait.
constexpr std::chrono::milliseconds kReasonWait{20};

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g s", seconds);
  return text;
}

std::string rank_text(int rank) { return "rank " + std::to_string(rank); }

// Where the parts of a message begin that is cut over some links, and its end.
std::vector<std::size_t> stripe_bounds(std::size_t bytes, std::size_t links) {
  if (bytes < Mesh::kStripeBytes) links = 1;
  constexpr std::size_t kAlign = 64;
  std::size_t step = ((bytes + links - 1) / links + kAlign - 1) / kAlign * kAlign;
  std::vector<std::size_t> bounds;
  for (std::size_t i = 0; i <= links; ++i) bounds.push_back(std::min(bytes, i * step));
  bounds.back() = bytes;
  return bounds;
}

}  // namespace

Mesh::Mesh(int rank, int size, std::map<int, Peer> peers, Settings settings)
    : rank_(rank), size_(size), settings_(std::move(settings)), timeout_seconds_(settings_.timeout_seconds) {
  std::map<int, int> side_descriptors;
  for (auto& [peer, links] : peers) {
    if (links.side_descriptor >= 0) side_descriptors[peer] = links.side_descriptor;
  }
  auto reject = [&side_descriptors](const std::string& text) {
    for (auto [peer, descriptor] : side_descriptors) ::close(descriptor);
    throw std::invalid_argument(text);
  };
  if (size < 1 || size > 65535 || rank < 0 || rank >= size) {
    reject("a group cannot have rank " + std::to_string(rank) + " of " + std::to_string(size));
  }
  std::size_t with_collectives = 0;
  for (auto& [peer, links] : peers) {
    if (peer < 0 || peer >= size || peer == rank) {
      reject(rank_text(rank) + " of " + std::to_string(size) + " cannot have a peer " + std::to_string(peer));
    }
    Lanes& lanes = peers_[peer];
    auto adopt = [&](std::vector<std::unique_ptr<Link>>& from, std::vector<std::unique_ptr<Channel>>& to, Lane lane) {
      for (auto& link : from) {
        to.push_back(std::make_unique<Channel>(std::move(link), settings_.epoch, static_cast<std::uint8_t>(lane),
                                               static_cast<std::uint16_t>(rank), static_cast<std::uint16_t>(peer),
                                               settings_.checksum_payloads));
      }
    };
    adopt(links.point_to_point, lanes.point_to_point, Lane::kPointToPoint);
    adopt(links.collective, lanes.collective, Lane::kCollective);
    if (!lanes.collective.empty()) ++with_collectives;
  }
  has_collectives_ = with_collectives == static_cast<std::size_t>(size - 1);
  if (has_collectives_) {
    scratch_stride_ = std::max(kOneHopBytes, kBlockBytes);
    scratch_.resize(scratch_stride_ * static_cast<std::size_t>(size - 1));
  }
  // The watching thread may report before this constructor has the object: on_end waits for this lock.
  std::lock_guard lock(mutex_);
  side_ = std::make_unique<SideSockets>(
      std::move(side_descriptors),
      [this](int peer, SideSockets::End how, const SideSockets::Reason& reason) { on_end(peer, how, reason); });
}

Mesh::~Mesh() { close(); }

void Mesh::send(int peer, const Message& message, std::span<const std::byte> payload) {
  Running running(*this, "send");
  Lanes& lanes = lanes_of(peer, "send");
  refuse_farewell(peer, "send");
  Exchange exchange(stopper_, settings_.spin_us);
  send_parts(exchange, lanes.point_to_point, message, payload);
  const double seconds = timeout();
  run(exchange, "send", Deadline::after(seconds), seconds);
}

void Mesh::receive(int peer, const Message& expected, std::span<std::byte> into) {
  Running running(*this, "recv");
  Lanes& lanes = lanes_of(peer, "recv");
  Exchange exchange(stopper_, settings_.spin_us);
  receive_parts(exchange, lanes.point_to_point, expected, into);
  const double seconds = receive_timeout();
  run(exchange, "recv", Deadline::after(seconds), seconds);
}

// The lanes of a peer that point-to-point messages can go to.
Mesh::Lanes& Mesh::lanes_of(int peer, const char* what) {
  auto found = peers_.find(peer);
  if (found == peers_.end() || found->second.point_to_point.empty()) {
    refuse(what, peer == rank_ ? "a rank has no link to itself"
                               : "this rank has no link for messages with " + rank_text(peer));
  }
  return found->second;
}

// A send to a peer that has said farewell: it will never read this; the link might take the bytes all the same.
void Mesh::refuse_farewell(int peer, const char* what) {
  std::unique_lock lock(mutex_);
  bool gone = farewell_.count(peer) != 0;
  lock.unlock();
  if (gone) fail(what, Status(Code::kPeerLost, rank_text(peer) + " has closed the group"), peer);
}

void Mesh::refuse_collective(const char* what, bool sizes_fit) {
  if (!sizes_fit) refuse(what, "the bytes of input and output do not fit together");
  if (!has_collectives_) refuse(what, "this group was made without links for collectives to every rank");
  std::unique_lock lock(mutex_);
  if (farewell_.empty()) return;
  int peer = *farewell_.begin();
  lock.unlock();
  fail(what, Status(Code::kPeerLost, rank_text(peer) + " has closed the group"), peer);
}

void Mesh::send_parts(Exchange& exchange, Channels& channels, const Message& message,
                      std::span<const std::byte> payload) {
  auto bounds = stripe_bounds(payload.size(), channels.size());
  for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
    exchange.send(*channels[i], message, payload.subspan(bounds[i], bounds[i + 1] - bounds[i]));
  }
}

void Mesh::receive_parts(Exchange& exchange, Channels& channels, const Message& expected, std::span<std::byte> into) {
  auto bounds = stripe_bounds(into.size(), channels.size());
  for (std::size_t i = 0; i + 1 < bounds.size(); ++i) {
    exchange.receive(*channels[i], expected, into.subspan(bounds[i], bounds[i + 1] - bounds[i]));
  }
}

void Mesh::run(Exchange& exchange, const char* what, Deadline deadline, double timeout_seconds) {
  Exchange::Outcome outcome = exchange.run(deadline);
  Status& status = outcome.status;
  switch (status.code()) {
    case Code::kOk: return;
    case Code::kAborted: raise(what);
    case Code::kTimeout:
      fail(what, Status(Code::kTimeout, status.text() + " (" + seconds_text(timeout_seconds) + ")"), outcome.peer);
    case Code::kPeerLost: {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kReasonWait, [&] { return over_ || ended_.count(outcome.peer) != 0; });
      bool closed = farewell_.count(outcome.peer) != 0;
      lock.unlock();
      std::string text = rank_text(outcome.peer) + (closed ? " has closed the group" : " has gone: " + status.text());
      fail(what, Status(Code::kPeerLost, std::move(text)), outcome.peer);
    }
    case Code::kMismatch:
    case Code::kCorrupt:
    case Code::kLocal: fail(what, std::move(status), outcome.peer);
  }
}

void Mesh::on_end(int peer, SideSockets::End how, const SideSockets::Reason& reason) {
  {
    std::lock_guard lock(mutex_);
    if (how == SideSockets::End::kFarewell) farewell_.insert(peer);
  }
  switch (how) {
    case SideSockets::End::kFarewell: break;
    case SideSockets::End::kLost:
      record(Status(Code::kPeerLost, rank_text(peer) + " has gone: its connection ended without a farewell"), peer);
      break;
    case SideSockets::End::kAborted: {
      // What it found holds here too, and whom it blames is to blame, unless that is this rank; that it gave up of
      // its own will is a loss to this side.
      bool own_will = reason.code == Code::kAborted || reason.code == Code::kLocal;
      int blamed = reason.blamed >= 0 && reason.blamed < size_ && reason.blamed != rank_ ? reason.blamed : peer;
      record(Status(own_will ? Code::kPeerLost : reason.code, rank_text(peer) + " gave up: " + reason.text), blamed);
      break;
    }
    case SideSockets::End::kCorrupt:
      record(Status(Code::kCorrupt, "the side socket of " + rank_text(peer) + " is corrupt: " + reason.text), peer);
      break;
  }
  std::lock_guard lock(mutex_);
  ended_.insert(peer);
  changed_.notify_all();
}

bool Mesh::record(Status status, int peer) {
  std::lock_guard lock(mutex_);
  if (over_) return false;
  failure_ = {std::move(status), peer};
  over_ = true;
  stopper_.stop();
  if (side_) side_->abort({failure_.status.code(), failure_.peer, failure_.status.text()});
  changed_.notify_all();
  return true;
}

void Mesh::fail(const char* what, Status status, int peer) {
  if (!record(status, peer)) raise(what);
  throw MeshError(where(what) + ": " + status.text(), {status, peer});
}

void Mesh::refuse(const char* what, const std::string& text) {
  throw MeshError(where(what) + ": " + text, {Status(Code::kLocal, text), -1});
}

void Mesh::raise(const char* what) {
  MeshFailure known = failure();
  if (known.status.ok()) refuse(what, "the group was closed on this rank");
  throw MeshError(where(what) + ": the group has failed: " + known.status.text(), known);
}

std::string Mesh::where(const char* what) const {
  return std::string(what) + " failed on rank " + std::to_string(rank_) + " of " + std::to_string(size_) +
         " of group \"" + settings_.name + "\", " + to_text(settings_.epoch);
}

void Mesh::abort(const std::string& reason) { record(Status(Code::kAborted, reason), -1); }

void Mesh::close() {
  std::unique_ptr<SideSockets> side;
  std::map<int, Lanes> peers;
  {
    std::unique_lock lock(mutex_);
    if (closing_) {
      changed_.wait(lock, [this] { return closed_; });
      return;
    }
    closing_ = true;
    over_ = true;
    stopper_.stop();
    // Operations that are cut short here have not failed before: the peers learn of a farewell all the same.
    if (failure_.status.ok() && side_) side_->farewell();
    changed_.wait(lock, [this] { return running_ == 0; });
    side = std::move(side_);
    peers = std::move(peers_);
    peers_.clear();
    scratch_.clear();
    scratch_.shrink_to_fit();
  }
  side.reset();  // joins the watching thread, which may be waiting for the lock
  peers.clear();
  std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

MeshFailure Mesh::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

std::size_t Mesh::pool_bytes() const {
  std::lock_guard lock(mutex_);
  std::size_t bytes = scratch_.size();
  for (const auto& [peer, lanes] : peers_) {
    for (const auto& channel : lanes.point_to_point) bytes += channel->link().pool_bytes();
    for (const auto& channel : lanes.collective) bytes += channel->link().pool_bytes();
  }
  return bytes;
}

}  // namespace mm
