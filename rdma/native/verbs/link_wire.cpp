#include "verbs/link_wire.h"

#include "core/crc32c.h"
#include "verbs/link_bytes.h"

namespace mm::verbs {
namespace {

constexpr std::size_t kMagicAt = 0;
constexpr std::size_t kVersionAt = 4;
constexpr std::size_t kKindAt = 5;
constexpr std::size_t kCableAt = 6;
constexpr std::size_t kQueueAt = 7;
constexpr std::size_t kLinkAt = 8;
constexpr std::size_t kPayloadBytesAt = 12;
constexpr std::size_t kSequenceAt = 16;
constexpr std::size_t kQueueNumberAt = 24;
constexpr std::size_t kWireBytesAt = 28;
constexpr std::size_t kArrivedToAt = 32;
constexpr std::size_t kPostedAt = 40;
constexpr std::size_t kChecksumAt = 92;
static_assert(kPostedAt + 4 * kMostQueues <= kChecksumAt && kChecksumAt + 4 == kPrefixBytes);

// Over the prefix before the checksum, and over the frame's header behind it.
std::uint32_t checksum(std::span<const std::byte> buffer) {
  return crc32c(buffer.subspan(kPrefixBytes, kFrameHeaderBytes), crc32c(buffer.first(kChecksumAt)));
}

// Differs between any two sends into one buffer, so that the end of an earlier frame is never taken for this one's.
std::uint64_t trailer(std::uint32_t link, std::uint64_t sequence, std::uint32_t queue_number) {
  std::uint64_t value = (std::uint64_t{link} << 32 | queue_number) + 0x9E3779B97F4A7C15ULL * (sequence + 1);
  value ^= value >> 29;
  return value | 1;
}

std::uint64_t next_word(std::uint64_t& state) {
  state += 0x9E3779B97F4A7C15ULL;
  std::uint64_t word = state;
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ULL;
  return word ^ (word >> 31);
}

}  // namespace

void encode_prefix(const Prefix& prefix, std::span<std::byte> buffer, std::uint32_t wire_bytes) {
  std::byte* at = buffer.data();
  std::memset(at, 0, kPrefixBytes);
  put_number(at + kMagicAt, kWireMagic);
  put_number(at + kVersionAt, kWireVersion);
  put_number(at + kKindAt, static_cast<std::uint8_t>(prefix.kind));
  put_number(at + kCableAt, prefix.cable);
  put_number(at + kQueueAt, prefix.queue);
  put_number(at + kLinkAt, prefix.link);
  put_number(at + kPayloadBytesAt, prefix.payload_bytes);
  put_number(at + kSequenceAt, prefix.sequence);
  put_number(at + kQueueNumberAt, prefix.queue_number);
  put_number(at + kWireBytesAt, wire_bytes);
  put_number(at + kArrivedToAt, prefix.arrived_to);
  for (std::size_t i = 0; i < kMostQueues; ++i) put_number(at + kPostedAt + 4 * i, prefix.posted[i]);
  put_number(at + kChecksumAt, checksum(buffer));
  put_number(at + wire_bytes - kTrailerBytes, trailer(prefix.link, prefix.sequence, prefix.queue_number));
}

bool decode_prefix(std::span<const std::byte> received, Prefix& prefix) {
  if (received.size() < kPayloadAt + kTrailerBytes) return false;
  const std::byte* at = received.data();
  if (get_number<std::uint32_t>(at + kMagicAt) != kWireMagic) return false;
  if (get_number<std::uint8_t>(at + kVersionAt) != kWireVersion) return false;
  if (get_number<std::uint32_t>(at + kChecksumAt) != checksum(received)) return false;
  const auto kind = get_number<std::uint8_t>(at + kKindAt);
  if (kind < static_cast<std::uint8_t>(WireKind::kData) || kind > static_cast<std::uint8_t>(WireKind::kEcho)) {
    return false;
  }
  prefix.kind = static_cast<WireKind>(kind);
  prefix.cable = get_number<std::uint8_t>(at + kCableAt);
  prefix.queue = get_number<std::uint8_t>(at + kQueueAt);
  prefix.link = get_number<std::uint32_t>(at + kLinkAt);
  prefix.payload_bytes = get_number<std::uint32_t>(at + kPayloadBytesAt);
  prefix.sequence = get_number<std::uint64_t>(at + kSequenceAt);
  prefix.queue_number = get_number<std::uint32_t>(at + kQueueNumberAt);
  prefix.arrived_to = get_number<std::uint64_t>(at + kArrivedToAt);
  for (std::size_t i = 0; i < kMostQueues; ++i) prefix.posted[i] = get_number<std::uint32_t>(at + kPostedAt + 4 * i);
  if (get_number<std::uint32_t>(at + kWireBytesAt) != received.size()) return false;
  if (prefix.payload_bytes > received.size() - kPayloadAt - kTrailerBytes) return false;
  return get_number<std::uint64_t>(at + received.size() - kTrailerBytes) ==
         trailer(prefix.link, prefix.sequence, prefix.queue_number);
}

void fill_echo_pattern(std::uint64_t seed, std::span<std::byte> out) {
  std::size_t i = 0;
  for (; i + 8 <= out.size(); i += 8) put_number(out.data() + i, next_word(seed));
  const std::uint64_t last = next_word(seed);
  for (std::size_t j = 0; i < out.size(); ++i, ++j) out[i] = static_cast<std::byte>(last >> (8 * j));
}

bool is_echo_pattern(std::uint64_t seed, std::span<const std::byte> bytes) {
  std::size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    if (get_number<std::uint64_t>(bytes.data() + i) != next_word(seed)) return false;
  }
  const std::uint64_t last = next_word(seed);
  for (std::size_t j = 0; i < bytes.size(); ++i, ++j) {
    if (bytes[i] != static_cast<std::byte>(last >> (8 * j))) return false;
  }
  return true;
}

std::string encode_report(const Report& report) {
  ByteWriter out;
  out.number(report.arrived_to).number(static_cast<std::uint16_t>(report.ranges.size()));
  for (const auto& [from, to] : report.ranges) out.number(from).number(to);
  out.number(report.known_to).number(static_cast<std::uint16_t>(report.queues.size()));
  for (const QueueReport& queue : report.queues) {
    out.number(queue.next).number(queue.posted).number(queue.lost);
  }
  out.number(report.answers).number(static_cast<std::uint8_t>(report.asleep));
  return out.bytes();
}

bool decode_report(std::span<const std::byte> bytes, Report& report) {
  ByteReader in(bytes);
  report.arrived_to = in.number<std::uint64_t>();
  const std::size_t ranges = in.number<std::uint16_t>();
  if (ranges > Report::kMostRanges) return false;
  report.ranges.clear();
  std::uint64_t end = report.arrived_to;
  for (std::size_t i = 0; i < ranges; ++i) {
    const auto from = in.number<std::uint64_t>();
    const auto to = in.number<std::uint64_t>();
    if (from < end || to <= from) return false;
    end = to;
    report.ranges.emplace_back(from, to);
  }
  report.known_to = in.number<std::uint64_t>();
  if (report.known_to < end) return false;
  const std::size_t queues = in.number<std::uint16_t>();
  if (queues > std::size_t{kMostQueues} * kMostCables) return false;
  report.queues.clear();
  for (std::size_t i = 0; i < queues; ++i) {
    QueueReport queue;
    queue.next = in.number<std::uint64_t>();
    queue.posted = in.number<std::uint64_t>();
    queue.lost = in.number<std::uint64_t>();
    report.queues.push_back(queue);
  }
  report.answers = in.number<std::uint32_t>();
  report.asleep = in.number<std::uint8_t>() != 0;
  return in.complete();
}

}  // namespace mm::verbs
