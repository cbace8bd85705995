#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/crc32c.h"
#include "core/status.h"

namespace mm {

// Names one plan; compared field by field.
struct Epoch {
  std::uint64_t generation = 0;
  std::uint64_t term = 0;
  std::uint64_t seq = 0;
  friend bool operator==(const Epoch&, const Epoch&) = default;
};

enum class FrameKind : std::uint8_t {
  kData = 1,   // a part of a message
  kProbe = 2,  // measures a link: carries bytes that nobody reads
};

// What travels before every payload, in this order, little-endian, kFrameHeaderBytes long.
//
// A message is cut into frames; all of them carry the same fields but `offset` and `frame_bytes`.
struct FrameHeader {
  FrameKind kind = FrameKind::kData;
  std::uint8_t dtype = 0;          // see core/dtype.h
  std::uint8_t lane = 0;           // which of a link's message sequences: 0 point to point, 1 collectives
  Epoch epoch;
  std::uint64_t sequence = 0;      // number of the message on this lane and direction, from 0
  std::uint64_t message_bytes = 0;
  std::uint64_t offset = 0;        // of this frame's payload in the message
  std::uint32_t frame_bytes = 0;   // of this frame's payload
  std::uint32_t shape_hash = 0;    // see hash_shape
  std::uint16_t source = 0;        // rank
  std::uint16_t target = 0;        // rank
  std::uint32_t payload_checksum = 0;  // see payload_checksum(); 0: not computed
};

inline constexpr std::size_t kFrameHeaderBytes = 80;
inline constexpr std::uint32_t kFrameMagic = 0x31464D4D;  // "MMF1"
inline constexpr std::uint8_t kFrameVersion = 1;
inline constexpr std::uint32_t kMaxFrameBytes = 1U << 30;  // of one frame's payload
using FrameBytes = std::array<std::byte, kFrameHeaderBytes>;

// Writes the header with magic, version and its own CRC-32C.
void encode_header(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out);

// Reads a header. kCorrupt where magic, version, checksum, kind, or the arithmetic of the sizes is wrong.
Status decode_header(std::span<const std::byte, kFrameHeaderBytes> in, FrameHeader& header);

// CRC-32C of a payload as it travels: never 0, which is taken for none; all ones stands for it.
std::uint32_t payload_checksum(std::span<const std::byte> payload);

// FNV-1a over the number of dimensions and each of them.
std::uint32_t hash_shape(std::span<const std::int64_t> shape);

// "epoch 1.4.2", for messages to people.
std::string to_text(const Epoch& epoch);

}  // namespace mm
