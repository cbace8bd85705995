#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/frame.h"
#include "core/status.h"
#include "verbs/link_fit.h"

namespace mm::verbs {

// What travels over a cable: a prefix, then for data the frame's own header, then the payload, then a trailer.

enum class WireKind : std::uint8_t {
  kData = 1,
  kReport = 2,  // see Report; not numbered
  kEcho = 3,    // numbered as data; its payload is echo_pattern's
};

inline constexpr std::uint32_t kWireMagic = 0x31564D4D;  // "MMV1"
inline constexpr std::uint8_t kWireVersion = 1;

struct Prefix {
  WireKind kind = WireKind::kData;
  std::uint8_t cable = 0;
  std::uint8_t queue = 0;           // the size class
  std::uint32_t link = 0;           // tells this link's frames from those of one before
  std::uint32_t payload_bytes = 0;
  std::uint64_t sequence = 0;       // of the frame on this link and direction, from 0; of data and echoes
  std::uint32_t queue_number = 0;   // of the send on its queue pair, from 0, modulo 2^32
  std::uint64_t arrived_to = 0;     // every frame of the other direction below it has arrived
  std::array<std::uint32_t, kMostQueues> posted{};  // see QueueReport; of this cable's queues, modulo 2^32
};

inline constexpr std::size_t kPrefixBytes = 96;
static_assert(kPrefixBytes + kFrameHeaderBytes <= kPayloadAt);
static_assert(kPayloadAt + kTrailerBytes <= kOverheadBytes);

// Writes the prefix and, of data, the frame's header, with a checksum over both; then the trailer at `wire_bytes` - 8.
void encode_prefix(const Prefix& prefix, std::span<std::byte> buffer, std::uint32_t wire_bytes);

// Reads what came. False where it is no whole frame of this version: another magic, checksum or trailer.
[[nodiscard]] bool decode_prefix(std::span<const std::byte> received, Prefix& prefix);

// The bytes that verify a queue of a cable: of a seed that both ends know.
void fill_echo_pattern(std::uint64_t seed, std::span<std::byte> out);
[[nodiscard]] bool is_echo_pattern(std::uint64_t seed, std::span<const std::byte> bytes);

// What a receiver has of one queue of one cable. All only grow.
struct QueueReport {
  std::uint64_t next = 0;    // the number that it expects next: of all below it is known whether they arrived
  std::uint64_t posted = 0;  // receives posted at first, and again for each whole frame
  std::uint64_t lost = 0;    // numbers below `next` whose receive is still there
};

// All that a receiver knows. Later ones replace earlier ones; losing one costs time alone.
struct Report {
  static constexpr std::size_t kMostRanges = 64;

  std::uint64_t arrived_to = 0;
  // What arrived beyond it, half open, ascending; all of it below `known_to`.
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  std::uint64_t known_to = 0;
  std::vector<QueueReport> queues;  // cable by cable
  std::uint32_t answers = 0;        // the number of the probe that asked; 0: none
  bool asleep = false;              // its user waits without a descriptor of the device: send a wake
};

// Most bytes of an encoded report; fits a page.
inline constexpr std::size_t kMostReportBytes =
    8 + 2 + 16 * Report::kMostRanges + 8 + 2 + 24 * std::size_t{kMostQueues} * kMostCables + 4 + 1;
static_assert(kMostReportBytes <= kPageBytes - kOverheadBytes);

[[nodiscard]] std::string encode_report(const Report& report);
[[nodiscard]] bool decode_report(std::span<const std::byte> bytes, Report& report);

}  // namespace mm::verbs
