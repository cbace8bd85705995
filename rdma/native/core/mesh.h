#pragma once

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/channel.h"
#include "core/exchange.h"
#include "core/parcel.h"
#include "core/reduce.h"
#include "core/side.h"

namespace mm {

// The lanes of a group. Each (peer, lane) has links of its own, so that messages of one never wait behind the other's.
enum class Lane : std::uint8_t { kPointToPoint = 0, kCollective = 1 };

struct MeshFailure {
  Status status;
  int peer = -1;  // the rank to blame; -1: none known
};

// What an operation throws. The text names the group, its epoch, this rank, the operation and the reason.
class MeshError : public std::runtime_error {
 public:
  MeshError(const std::string& text, MeshFailure failure) : std::runtime_error(text), failure_(std::move(failure)) {}
  [[nodiscard]] const MeshFailure& failure() const { return failure_; }

 private:
  MeshFailure failure_;
};

// A group of ranks joined by links: point-to-point messages and collectives over bytes. No MLX here.
//
// Every operation has the group's deadline, counted from when it gets the lane to itself. The first failure ends the
// group: its reason goes to every peer, every operation under way ends, and every later one fails at once with the same
// failure. A wrong call (a rank that is not there, a lane that was not made) fails alone.
//
// A peer that closes its group in order ends this one only where it is needed: a message that it sent before can still
// be received; a send to it, a receive of more, or a collective fails. Thread-safe; collectives run one at a time.
class Mesh {
 public:
  struct Peer {
    // Several links carry a large message in contiguous parts. Both sides must give as many.
    std::vector<std::unique_ptr<Link>> point_to_point;  // may be empty: no messages with that peer
    std::vector<std::unique_ptr<Link>> collective;      // empty for any peer: this group has no collectives
    int side_descriptor = -1;                           // taken over; -1: none, so only the links tell of its end
  };
  struct Settings {
    Epoch epoch;
    std::string name;              // for messages to people, such as "stages"
    double timeout_seconds = 4.0;  // of every operation
    double spin_us = 100.0;
    bool checksum_payloads = false;  // of what this rank sends
  };

  static constexpr std::size_t kOneHopBytes = 32 * 1024;   // all-reduce: up to here everyone sends all to everyone
  static constexpr std::size_t kBlockBytes = 256 * 1024;   // all-reduce beyond it: scratch for each peer
  static constexpr std::size_t kStripeBytes = 256 * 1024;  // from here on a message is cut over all links of a lane
  static constexpr std::size_t kMostMessageBytes = std::size_t{16} << 20;  // of a host message

  // Throws std::invalid_argument where rank, size or a peer's number cannot be, std::system_error where the system
  // refuses a pipe or a thread. Everything handed over is released then too.
  Mesh(int rank, int size, std::map<int, Peer> peers, Settings settings);
  ~Mesh();  // closes
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }

  // All throw MeshError. `in` and `out` of all_reduce may be the same memory; of the others they must not overlap.
  void send(int peer, const Message& message, std::span<const std::byte> payload);
  void receive(int peer, const Message& expected, std::span<std::byte> into);
  void all_reduce(Reduction reduction, Message message, std::span<const std::byte> in, std::span<std::byte> out);
  // `out` holds the ranks' `in` in their order. `message.operation` may be kSplit.
  void all_gather(Message message, std::span<const std::byte> in, std::span<std::byte> out);
  // `in` holds a part for each rank; `out` is the sum of the ranks' parts for this one.
  void sum_scatter(Message message, std::span<const std::byte> in, std::span<std::byte> out);

  // Host transfers: from and to memory, in the calling thread. They share the point-to-point lane and its numbers with
  // `send` and `receive`, in the order of the calls, so both sides must mix the two alike. Each has its own deadline
  // (infinity: none) over all of it. One thread at a time for each peer and direction, another is refused; the two
  // directions and other peers are free. A send returns once its memory may be reused.
  void host_send(int peer, std::span<const OutgoingArray> arrays, double timeout_seconds);
  // `place` is asked once, when it is known what comes, for memory for each array, of just its bytes; what it gives or
  // throws instead ends the group, because the sender has done its part.
  using Place = std::function<Status(const Label& label, std::vector<std::span<std::byte>>& into)>;
  void host_receive(int peer, const Place& place, double timeout_seconds);
  // Bytes of any number up to kMostMessageBytes, which only the sender needs to know.
  void host_send_message(int peer, std::span<const std::byte> payload, double timeout_seconds);
  [[nodiscard]] std::vector<std::byte> host_receive_message(int peer, double timeout_seconds);

  void set_timeout(double seconds) { timeout_seconds_ = seconds; }
  [[nodiscard]] double timeout() const { return timeout_seconds_; }
  // Of each `receive` from now on, where it is not the group's; infinity: the group's.
  void set_receive_timeout(double seconds) { receive_timeout_seconds_ = seconds; }
  [[nodiscard]] double receive_timeout() const {
    const double seconds = receive_timeout_seconds_;
    return std::isfinite(seconds) ? seconds : timeout();
  }

  void abort(const std::string& reason);      // from any thread; every wait ends
  void close();                               // orderly, also while an operation runs (it fails); harmless when repeated
  [[nodiscard]] MeshFailure failure() const;  // status.ok() while nothing failed
  [[nodiscard]] std::size_t pool_bytes() const;  // buffers of the links, and the collectives' scratch
  [[nodiscard]] const Settings& settings() const { return settings_; }

 private:
  using Channels = std::vector<std::unique_ptr<Channel>>;
  struct Lanes {
    Channels point_to_point;
    Channels collective;
    // One host transfer in each direction at a time: it may be several messages.
    std::mutex host_send;
    std::mutex host_receive;
  };
  class Running;  // counts an operation as under way

  Lanes& lanes_of(int peer, const char* what);
  void refuse_farewell(int peer, const char* what);
  std::unique_lock<std::mutex> only_host(std::mutex& mutex, int peer, const char* what);
  Status place_parcel(const Place& place, const Label& label, std::vector<std::span<std::byte>>& into);
  static void send_parts(Exchange& exchange, Channels& channels, const Message& message,
                         std::span<const std::byte> payload);
  static void receive_parts(Exchange& exchange, Channels& channels, const Message& expected, std::span<std::byte> into);
  void run(Exchange& exchange, const char* what, Deadline deadline, double timeout_seconds);
  void refuse_collective(const char* what, bool sizes_fit);
  std::byte* scratch_of(int peer);
  void one_hop(Reduction reduction, const Message& message, std::span<const std::byte> in, std::span<std::byte> out,
               Deadline deadline);
  void reduce_part(Reduction reduction, const Message& message, std::span<const std::byte> in,
                   const std::vector<std::size_t>& bounds, std::span<std::byte> out, Deadline deadline);
  void on_end(int peer, SideSockets::End how, const SideSockets::Reason& reason);
  bool record(Status status, int peer);
  [[noreturn]] void fail(const char* what, Status status, int peer);
  [[noreturn]] void refuse(const char* what, const std::string& text);  // this call alone
  [[noreturn]] void raise(const char* what);                            // the failure on record
  [[nodiscard]] std::string where(const char* what) const;

  const int rank_;
  const int size_;
  const Settings settings_;
  std::atomic<double> timeout_seconds_;
  std::atomic<double> receive_timeout_seconds_{std::numeric_limits<double>::infinity()};
  std::map<int, Lanes> peers_;
  bool has_collectives_ = false;
  std::vector<std::byte> scratch_;
  std::size_t scratch_stride_ = 0;
  std::mutex collective_mutex_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  MeshFailure failure_;
  std::set<int> ended_;     // whose side socket has ended, in whatever way
  std::set<int> farewell_;  // who has closed in order
  int running_ = 0;
  bool closing_ = false;
  bool closed_ = false;
  std::atomic<bool> over_{false};  // failed or closing

  Stopper stopper_;
  std::unique_ptr<SideSockets> side_;  // last: its thread uses all of the above
};

}  // namespace mm
