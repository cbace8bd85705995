#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/channel.h"
#include "core/exchange.h"
#include "core/reduce.h"
#include "core/side.h"

namespace mm {

// The lanes of a group. Each (peer, lane) has a link of its own, so that messages of one never wait behind the other's.
enum class Lane : std::uint8_t { kPointToPoint = 0, kCollective = 1 };

struct MeshFailure {
  Status status;
  int peer = -1;  // the rank to blame; -1: none known
};

// A group of ranks joined by links: point-to-point messages and collectives over bytes. No MLX here.
//
// Every operation has the group's deadline. The first failure ends the group: its reason goes to every peer, every
// operation under way ends, and every later one fails at once with the same failure. Thread-safe.
class Mesh {
 public:
  struct Peer {
    std::unique_ptr<Link> point_to_point;  // may be null: no messages with that peer
    std::unique_ptr<Link> collective;      // null: this group has no collectives
    int side_descriptor = -1;              // taken over
  };
  struct Settings {
    Epoch epoch;
    std::string name;              // for messages to people, such as "stages"
    double timeout_seconds = 4.0;  // of every operation
    double spin_us = 20.0;
  };

  Mesh(int rank, int size, std::map<int, Peer> peers, Settings settings);
  ~Mesh();  // closes

  [[nodiscard]] int rank() const;
  [[nodiscard]] int size() const;

  // All throw MeshError.
  void send(int peer, const Message& message, std::span<const std::byte> payload);
  void receive(int peer, const Message& expected, std::span<std::byte> into);
  void all_reduce(Reduction reduction, const Message& message, std::span<const std::byte> in, std::span<std::byte> out);
  void all_gather(const Message& message, std::span<const std::byte> in, std::span<std::byte> out);
  void sum_scatter(const Message& message, std::span<const std::byte> in, std::span<std::byte> out);

  void set_timeout(double seconds);
  [[nodiscard]] double timeout() const;

  void abort(const std::string& reason);  // from any thread; every wait ends
  void close();                           // orderly; harmless when repeated
  [[nodiscard]] MeshFailure failure() const;  // status().ok() while nothing failed
  [[nodiscard]] std::size_t pool_bytes() const;
};

class MeshError;

}  // namespace mm
