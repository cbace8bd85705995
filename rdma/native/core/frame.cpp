#include "core/frame.h"

#include <bit>
#include <cstdio>
#include <cstring>

#include "core/crc32c.h"

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

template <typename T>
void put(std::byte* at, T value) {
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(at, &value, sizeof value);
  } else {
    for (std::size_t i = 0; i < sizeof value; ++i) {
      at[i] = static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i));
    }
  }
}

template <typename T>
[[nodiscard]] T get(const std::byte* at) {
  if constexpr (std::endian::native == std::endian::little) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  } else {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value |= std::to_integer<std::uint64_t>(at[i]) << (8 * i);
    return static_cast<T>(value);
  }
}

std::string hex(std::uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08X", static_cast<unsigned>(value));
  return text;
}

Status corrupt(std::string text) { return Status(Code::kCorrupt, "not a frame: " + std::move(text)); }

}  // namespace

void encode_header(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out) {
  std::byte* at = out.data();
  put(at + kMagicAt, kFrameMagic);
  put(at + kVersionAt, kFrameVersion);
  put(at + kKindAt, static_cast<std::uint8_t>(header.kind));
  put(at + kDtypeAt, header.dtype);
  put(at + kLaneAt, header.lane);
  put(at + kGenerationAt, header.epoch.generation);
  put(at + kTermAt, header.epoch.term);
  put(at + kSeqAt, header.epoch.seq);
  put(at + kSequenceAt, header.sequence);
  put(at + kMessageBytesAt, header.message_bytes);
  put(at + kOffsetAt, header.offset);
  put(at + kFrameBytesAt, header.frame_bytes);
  put(at + kShapeHashAt, header.shape_hash);
  put(at + kSourceAt, header.source);
  put(at + kTargetAt, header.target);
  put(at + kPayloadChecksumAt, header.payload_checksum);
  put(at + kReservedAt, std::uint32_t{0});
  put(at + kChecksumAt, crc32c(out.first(kChecksumAt)));
}

Status decode_header(std::span<const std::byte, kFrameHeaderBytes> in, FrameHeader& header) {
  const std::byte* at = in.data();
  // Magic and version first: only what is a frame of this version has its checksum where we look for it.
  const auto magic = get<std::uint32_t>(at + kMagicAt);
  if (magic != kFrameMagic) return corrupt("magic " + hex(magic) + ", expected " + hex(kFrameMagic));
  const auto version = get<std::uint8_t>(at + kVersionAt);
  if (version != kFrameVersion) {
    return corrupt("version " + std::to_string(version) + ", expected " + std::to_string(kFrameVersion));
  }
  const auto carried = get<std::uint32_t>(at + kChecksumAt);
  const auto computed = crc32c(in.first(kChecksumAt));
  if (carried != computed) return corrupt("header checksum " + hex(carried) + ", expected " + hex(computed));

  const auto kind = get<std::uint8_t>(at + kKindAt);
  if (kind != static_cast<std::uint8_t>(FrameKind::kData) && kind != static_cast<std::uint8_t>(FrameKind::kProbe)) {
    return corrupt("unknown kind " + std::to_string(kind));
  }
  if (get<std::uint32_t>(at + kReservedAt) != 0) return corrupt("reserved bytes are not zero");

  FrameHeader read;
  read.kind = static_cast<FrameKind>(kind);
  read.dtype = get<std::uint8_t>(at + kDtypeAt);
  read.lane = get<std::uint8_t>(at + kLaneAt);
  read.epoch.generation = get<std::uint64_t>(at + kGenerationAt);
  read.epoch.term = get<std::uint64_t>(at + kTermAt);
  read.epoch.seq = get<std::uint64_t>(at + kSeqAt);
  read.sequence = get<std::uint64_t>(at + kSequenceAt);
  read.message_bytes = get<std::uint64_t>(at + kMessageBytesAt);
  read.offset = get<std::uint64_t>(at + kOffsetAt);
  read.frame_bytes = get<std::uint32_t>(at + kFrameBytesAt);
  read.shape_hash = get<std::uint32_t>(at + kShapeHashAt);
  read.source = get<std::uint16_t>(at + kSourceAt);
  read.target = get<std::uint16_t>(at + kTargetAt);
  read.payload_checksum = get<std::uint32_t>(at + kPayloadChecksumAt);

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
