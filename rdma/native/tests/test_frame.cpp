#include <cstring>
#include <random>

#include "core/frame.h"
#include "tests/check.h"

using namespace mm;

namespace {

FrameHeader example() {
  FrameHeader header;
  header.kind = FrameKind::kProbe;
  header.dtype = 13;
  header.lane = 1;
  header.epoch = {0x0102030405060708, 0x1112131415161718, 0x2122232425262728};
  header.sequence = 0x3132333435363738;
  header.message_bytes = 0x4142434445464748;
  header.offset = 0x5152;
  header.frame_bytes = 0x616263;
  header.shape_hash = 0x71727374;
  header.source = 0x8182;
  header.target = 0x9192;
  header.payload_checksum = 0xA1A2A3A4;
  return header;
}

FrameBytes encoded(const FrameHeader& header) {
  FrameBytes bytes;
  encode_header(header, bytes);
  return bytes;
}

// Makes the checksum right again, so that only the other checks can object.
void seal(FrameBytes& bytes) {
  const std::uint32_t crc = crc32c(std::span(bytes).first(76));
  for (unsigned i = 0; i < 4; ++i) bytes[76 + i] = static_cast<std::byte>(crc >> (8 * i));
}

std::string refusal(const FrameBytes& bytes) {
  FrameHeader header;
  header.sequence = 77;
  const Status status = decode_header(bytes, header);
  CHECK(status.code() == Code::kCorrupt);
  CHECK(header.sequence == 77);  // untouched
  return status.text();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(header_round_trip) {
  const FrameHeader sent = example();
  FrameHeader got;
  CHECK(decode_header(encoded(sent), got).ok());
  CHECK(got.kind == sent.kind && got.dtype == sent.dtype && got.lane == sent.lane && got.epoch == sent.epoch);
  CHECK(got.sequence == sent.sequence && got.message_bytes == sent.message_bytes && got.offset == sent.offset);
  CHECK(got.frame_bytes == sent.frame_bytes && got.shape_hash == sent.shape_hash);
  CHECK(got.source == sent.source && got.target == sent.target && got.payload_checksum == sent.payload_checksum);
}

TEST(layout_is_frozen) {
  const unsigned char expected[76] = {
      'M',  'M',  'F',  '1',  1,    2,    13,   1,     // magic, version, kind, dtype, lane
      0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,  // generation
      0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,  // term
      0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21,  // seq
      0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,  // sequence
      0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41,  // message_bytes
      0x52, 0x51, 0,    0,    0,    0,    0,    0,     // offset
      0x63, 0x62, 0x61, 0,    0x74, 0x73, 0x72, 0x71,  // frame_bytes, shape_hash
      0x82, 0x81, 0x92, 0x91, 0xA4, 0xA3, 0xA2, 0xA1,  // source, target, payload_checksum
      0,    0,    0,    0};
  const FrameBytes bytes = encoded(example());
  CHECK(std::memcmp(bytes.data(), expected, sizeof expected) == 0);
}

TEST(every_flipped_bit_is_refused) {
  const FrameBytes good = encoded(example());
  for (std::size_t bit = 0; bit < kFrameHeaderBytes * 8; ++bit) {
    FrameBytes bytes = good;
    bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    (void)refusal(bytes);
  }
}

TEST(each_check_says_what_is_wrong) {
  FrameBytes bytes = encoded(example());
  bytes[0] = std::byte{'X'};
  seal(bytes);
  CHECK(contains(refusal(bytes), "magic"));

  bytes = encoded(example());
  bytes[4] = std::byte{9};
  seal(bytes);
  CHECK(contains(refusal(bytes), "version 9, expected 1"));

  bytes = encoded(example());
  bytes[40] ^= std::byte{1};
  CHECK(contains(refusal(bytes), "checksum"));

  for (const int kind : {0, 3, 255}) {
    bytes = encoded(example());
    bytes[5] = static_cast<std::byte>(kind);
    seal(bytes);
    CHECK(contains(refusal(bytes), "unknown kind " + std::to_string(kind)));
  }

  bytes = encoded(example());
  bytes[72] = std::byte{1};
  seal(bytes);
  CHECK(contains(refusal(bytes), "reserved"));
}

TEST(impossible_sizes_are_refused) {
  FrameHeader header = example();
  header.frame_bytes = 0;
  CHECK(contains(refusal(encoded(header)), "empty frame"));

  header = example();
  header.frame_bytes = (1U << 30) + 1;
  CHECK(contains(refusal(encoded(header)), "1073741825"));

  header = example();
  header.message_bytes = 100;
  header.frame_bytes = 50;
  header.offset = 51;
  CHECK(contains(refusal(encoded(header)), "50 bytes at 51 of a message of 100"));
  header.offset = ~std::uint64_t{0} - 10;  // the sum wraps around
  (void)refusal(encoded(header));
  header.offset = 0;
  header.frame_bytes = 101;
  (void)refusal(encoded(header));
  header.message_bytes = 0;
  header.frame_bytes = 0;
  header.offset = 1;
  (void)refusal(encoded(header));
}

TEST(extreme_sizes_are_taken) {
  FrameHeader header = example();
  FrameHeader got;
  header.message_bytes = header.frame_bytes = 1U << 30;
  header.offset = 0;
  CHECK(decode_header(encoded(header), got).ok() && got.frame_bytes == 1U << 30);
  header.message_bytes = ~std::uint64_t{0};
  header.offset = header.message_bytes - header.frame_bytes;
  CHECK(decode_header(encoded(header), got).ok());
  header.message_bytes = header.offset = header.frame_bytes = 0;
  CHECK(decode_header(encoded(header), got).ok());
}

TEST(checksum_agrees_with_published_values) {
  const std::string digits = "123456789";
  CHECK(crc32c(std::as_bytes(std::span(digits))) == 0xE3069283U);
  std::array<std::byte, 32> bytes{};  // RFC 3720, appendix B.4
  CHECK(crc32c(bytes) == 0x8A9136AAU);
  bytes.fill(std::byte{0xFF});
  CHECK(crc32c(bytes) == 0x62A8AB43U);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  CHECK(crc32c(bytes) == 0x46DD794EU);
  CHECK(crc32c({}) == 0);
}

TEST(checksum_by_instruction_and_by_table_agree) {
  std::vector<std::byte> data(400);
  std::mt19937 random(1);
  for (auto& byte : data) byte = static_cast<std::byte>(random());
  const std::span<const std::byte> all(data);
  for (std::size_t from = 0; from < 16; ++from) {
    for (std::size_t length = 0; from + length <= data.size(); length += length < 64 ? 1 : 37) {
      const auto part = all.subspan(from, length);
      CHECK(crc32c(part) == crc32c_by_table(part));
      CHECK(crc32c(part.subspan(length / 3), crc32c_by_table(part.first(length / 3))) == crc32c(part));
    }
  }
}

TEST(shapes_hash_apart) {
  const auto hash = [](std::vector<std::int64_t> shape) { return hash_shape(shape); };
  CHECK(hash({1, 3, 64}) == hash({1, 3, 64}));
  CHECK(hash({1, 3, 64}) != hash({3, 1, 64}));
  CHECK(hash({1, 3, 64}) != hash({1, 192}));
  CHECK(hash({}) != hash({0}) && hash({1}) != hash({1, 1}) && hash({256}) != hash({1}));
}

TEST(a_payload_checksum_is_never_the_one_that_means_none) {
  const std::byte payload[] = {std::byte{1}, std::byte{2}};
  CHECK(payload_checksum(payload) == crc32c(payload));
  CHECK(crc32c({}) == 0 && payload_checksum({}) == 0xFFFFFFFF);
}

CHECK_MAIN
