#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// What a fabric of the fake verbs library is like. Read from text, and kept in the shared segment.
namespace mm::fakeverbs {

// Plain data: it lies in shared memory. The defaults are a Mac's limits without latency, faults or a bandwidth.
struct Settings {
  // Limits of each device, for all processes together.
  std::uint32_t queue_pairs = 10;
  std::uint32_t regions = 100;
  std::uint32_t requests = 4095;     // places of one queue
  std::uint32_t completions = 65535;  // of one completion queue
  std::uint64_t message_bytes = 16773120;
  std::uint64_t region_bytes = std::uint64_t{1} << 40;
  // A request takes one place per so many bytes; 0: one place.
  std::uint32_t frame_bytes = 4096;
  bool equal_frames = true;  // a receive must cover as many frames as the send
  bool thunderbolt = true;   // the link layer that ports tell: Apple's, or Ethernet
  bool reliable = false;     // reliable connections can be made
  bool receive_before_ready = false;  // receives may be posted before the state ready-to-send
  bool flow_control = false;          // a send begins only once its receive is posted, so none is dropped for want
  bool events = true;                 // completion channels can be made
  bool addresses = true;              // the paired interfaces have IPv4 addresses, so GID 1 is there
  bool cut_refuses = false;           // posts on a cable that is cut fail with EIO
  // The rights that a region must be registered with: 0 any, 1 local write alone, 2 local and remote access.
  std::uint32_t rights = 0;

  // Each cable, in each direction: begin + bytes / bandwidth + latency, one message after the other.
  std::uint64_t latency_ns = 0;
  std::uint64_t bytes_per_second = 0;  // 0: no bound
  // A completion is seen up to so much later; in order within a queue, so queues overtake one another.
  std::uint64_t jitter_ns = 0;
  // After so long a reliable send to a peer that is gone fails.
  std::uint64_t retry_ns = 500'000'000;
  // The fabric's time goes so many times slower than the machine's: 8 GB/s can be modelled on a machine that copies
  // less. With the manual clock it goes only when it is told to.
  std::uint32_t slowdown = 1;
  bool manual_clock = false;

  // Faults: the share of messages that meet them, by the seed and the message's number in its direction.
  std::uint64_t seed = 1;
  double loss = 0;
  double corrupt = 0;        // one byte is another
  double torn = 0;           // the second half stays what it was
  double send_errors = 0;    // the send completes with an error
  double receive_errors = 0;  // the receive completes with an error

  std::uint64_t pool_bytes = std::uint64_t{64} << 20;  // for messages in flight
};

struct Plug {
  std::string host;
  std::string device;
};

struct Cable {
  Plug ends[2];
};

struct Plan {
  Settings settings;
  std::vector<Cable> cables;
  std::vector<Plug> loose;  // devices without a cable
};

// Reads lines (or parts between semicolons) `key=value`. `flavour=apple` or `flavour=linux` sets the defaults of the
// others and comes first; `cables=a.fake0-b.fake0,...`, `loose=a.fake1,...`; switches are 0 or 1.
// Throws std::invalid_argument that names the key.
Plan parse_plan(std::string_view text);

// Applies one `key=value` of the settings. Throws std::invalid_argument.
void apply(Settings& settings, std::string_view key, std::string_view value);

}  // namespace mm::fakeverbs
