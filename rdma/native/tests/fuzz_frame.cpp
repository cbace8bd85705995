// Any 80 bytes: decoded or refused, and what is decoded makes sense and encodes to the same bytes.
#include <algorithm>
#include <cstring>

#include "core/frame.h"
#include "tests/check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mm;
  FrameBytes bytes{};
  if (size > 1) std::memcpy(bytes.data(), data + 1, std::min(size - 1, bytes.size()));
  if (size > 0 && (data[0] & 1) != 0) {  // behind the first checks
    const std::uint32_t magic = kFrameMagic;
    std::memcpy(bytes.data(), &magic, sizeof magic);
    bytes[4] = std::byte{kFrameVersion};
    if ((data[0] & 2) != 0) bytes[5] = std::byte{1};
    if ((data[0] & 4) != 0) std::memset(&bytes[72], 0, 4);
    if ((data[0] & 8) != 0) std::memset(&bytes[44], 0, 4);  // sizes that may fit each other
    if ((data[0] & 16) != 0) std::memset(&bytes[50], 0, 6);
    if ((data[0] & 32) != 0) bytes[59] &= std::byte{0x3F};
    const std::uint32_t crc = crc32c(std::span(bytes).first(76));
    std::memcpy(&bytes[76], &crc, sizeof crc);
  }
  FrameHeader header;
  if (!decode_header(bytes, header).ok()) return 0;
  CHECK(header.frame_bytes <= kMaxFrameBytes);
  CHECK(header.offset + header.frame_bytes >= header.offset);
  CHECK(header.offset + header.frame_bytes <= header.message_bytes);
  CHECK(header.frame_bytes > 0 || header.message_bytes == 0);
  FrameBytes again;
  encode_header(header, again);
  CHECK(again == bytes);
  return 0;
}
