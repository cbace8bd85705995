#include "core/frame.h"

#include <cstdio>

#include "core/crc32c.h"
#include "core/little_endian.h"

namespace mm {
namespace {

// Where each field lies; the last four bytes hold the checksum of all before them.
constexpr std::size_t kMagicAt = 0;
constexpr std::size_t kVersionAt = 4;
constexpr std::size_t kKindAt = 5;
constexpr std::size_t kDtypeAt = 6;
constexpr std::size_t kLaneAt = 7;
constexpr std::size_t kGenerationAt = 8;
constexpr std::size_t kTermAt = 16;
constexpr std::size_t kSeqAt = 24;
constexpr std::size_t kSequenceAt = 32;
constexpr std::size_t kMessageBytesAt = 40;
constexpr std::size_t kOffsetAt = 48;
constexpr std::size_t kFrameBytesAt = 56;
constexpr std::size_t kShapeHashAt = 60;
constexpr std::size_t kSourceAt = 64;
constexpr std::size_t kTargetAt = 66;
constexpr std::size_t kPayloadChecksumAt = 68;
constexpr std::size_t kReservedAt = 72;
constexpr std::size_t kChecksumAt = 76;
static_assert(kChecksumAt + sizeof(std::uint32_t) == kFrameHeaderBytes);

std::string hex(std::uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08X", static_cast<unsigned>(value));
  return text;
}

Status corrupt(std::string text) { return Status(Code::kCorrupt, "not a frame: " + std::move(text)); }

}  // namespace

void encode_header(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out) {
  std::byte* at = out.data();
  put_number(at + kMagicAt, kFrameMagic);
  put_number(at + kVersionAt, kFrameVersion);
  put_number(at + kKindAt, static_cast<std::uint8_t>(header.kind));
  put_number(at + kDtypeAt, header.dtype);
  put_number(at + kLaneAt, header.lane);
  put_number(at + kGenerationAt, header.epoch.generation);
  put_number(at + kTermAt, header.epoch.term);
  put_number(at + kSeqAt, header.epoch.seq);
  put_number(at + kSequenceAt, header.sequence);
  put_number(at + kMessageBytesAt, header.message_bytes);
  put_number(at + kOffsetAt, header.offset);
  put_number(at + kFrameBytesAt, header.frame_bytes);
  put_number(at + kShapeHashAt, header.shape_hash);
  put_number(at + kSourceAt, header.source);
  put_number(at + kTargetAt, header.target);
  put_number(at + kPayloadChecksumAt, header.payload_checksum);
  put_number(at + kReservedAt, std::uint32_t{0});
  put_number(at + kChecksumAt, crc32c(out.first(kChecksumAt)));
}

Status decode_header(std::span<const std::byte, kFrameHeaderBytes> in, FrameHeader& header) {
  const std::byte* at = in.data();
  // Magic and version first: only what is a frame of this version has its checksum where we look for it.
  const auto magic = get_number<std::uint32_t>(at + kMagicAt);
  if (magic != kFrameMagic) return corrupt("magic " + hex(magic) + ", expected " + hex(kFrameMagic));
  const auto version = get_number<std::uint8_t>(at + kVersionAt);
  if (version != kFrameVersion) {
    return corrupt("version " + std::to_string(version) + ", expected " + std::to_string(kFrameVersion));
  }
  const auto carried = get_number<std::uint32_t>(at + kChecksumAt);
  const auto computed = crc32c(in.first(kChecksumAt));
  if (carried != computed) return corrupt("header checksum " + hex(carried) + ", expected " + hex(computed));

  const auto kind = get_number<std::uint8_t>(at + kKindAt);
  if (kind != static_cast<std::uint8_t>(FrameKind::kData) && kind != static_cast<std::uint8_t>(FrameKind::kProbe)) {
    return corrupt("unknown kind " + std::to_string(kind));
  }
  if (get_number<std::uint32_t>(at + kReservedAt) != 0) return corrupt("reserved bytes are not zero");

  FrameHeader read;
  read.kind = static_cast<FrameKind>(kind);
  read.dtype = get_number<std::uint8_t>(at + kDtypeAt);
  read.lane = get_number<std::uint8_t>(at + kLaneAt);
  read.epoch.generation = get_number<std::uint64_t>(at + kGenerationAt);
  read.epoch.term = get_number<std::uint64_t>(at + kTermAt);
  read.epoch.seq = get_number<std::uint64_t>(at + kSeqAt);
  read.sequence = get_number<std::uint64_t>(at + kSequenceAt);
  read.message_bytes = get_number<std::uint64_t>(at + kMessageBytesAt);
  read.offset = get_number<std::uint64_t>(at + kOffsetAt);
  read.frame_bytes = get_number<std::uint32_t>(at + kFrameBytesAt);
  read.shape_hash = get_number<std::uint32_t>(at + kShapeHashAt);
  read.source = get_number<std::uint16_t>(at + kSourceAt);
  read.target = get_number<std::uint16_t>(at + kTargetAt);
  read.payload_checksum = get_number<std::uint32_t>(at + kPayloadChecksumAt);

  if (read.frame_bytes > kMaxFrameBytes) return corrupt("frame of " + std::to_string(read.frame_bytes) + " bytes");
  if (read.frame_bytes == 0 && read.message_bytes > 0) {
    return corrupt("empty frame of a message of " + std::to_string(read.message_bytes) + " bytes");
  }
  // Written so that no sum can wrap around.
  if (read.frame_bytes > read.message_bytes || read.offset > read.message_bytes - read.frame_bytes) {
    return corrupt(std::to_string(read.frame_bytes) + " bytes at " + std::to_string(read.offset) +
                   " of a message of " + std::to_string(read.message_bytes));
  }
  header = read;
  return {};
}

std::uint32_t payload_checksum(std::span<const std::byte> payload) {
  const std::uint32_t crc = crc32c(payload);
  return crc != 0 ? crc : 0xFFFFFFFFU;
}

std::uint32_t hash_shape(std::span<const std::int64_t> shape) {
  std::uint32_t hash = 2166136261U;
  const auto mix = [&hash](std::uint64_t value) {
    for (unsigned i = 0; i < 8; ++i) hash = (hash ^ static_cast<std::uint32_t>((value >> (8 * i)) & 0xFF)) * 16777619U;
  };
  mix(shape.size());
  for (const std::int64_t dimension : shape) mix(static_cast<std::uint64_t>(dimension));
  return hash;
}

std::string to_text(const Epoch& epoch) {
  return "epoch " + std::to_string(epoch.generation) + "." + std::to_string(epoch.term) + "." +
         std::to_string(epoch.seq);
}

}  // namespace mm
