#include "core/parcel.h"

#include <cstring>
#include <random>

#include "tests/check.h"

using namespace mm;

namespace {

std::vector<std::byte> bytes_of(std::size_t count, int seed) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((i * 31 + static_cast<std::size_t>(seed)) % 251);
  return bytes;
}

}  // namespace

TEST(a_label_is_read_as_it_was_written) {
  for (std::size_t rows : {0, 1, 3, 100, 5000}) {
    ArrayFacts hidden{Dtype::kBfloat16, {1, static_cast<std::int32_t>(rows), 64}};
    ArrayFacts ids{Dtype::kUint32, {2}};
    ArrayFacts scalar{Dtype::kFloat32, {}};
    auto a = bytes_of(rows * 128, 1);
    auto b = bytes_of(8, 2);
    auto c = bytes_of(4, 3);
    std::vector<OutgoingArray> arrays{{hidden, a}, {ids, b}, {scalar, c}};
    std::vector<std::byte> out;
    CHECK(write_label(arrays, out).ok());
    Label label;
    CHECK(read_label(out, label).ok());
    CHECK((label.arrays == std::vector{hidden, ids, scalar}));
    CHECK((label.sizes == std::vector<std::size_t>{rows * 128, 8, 4}));
    CHECK(label.inlined == (rows * 128 + 12 <= kInlineBytes));
    if (!label.inlined) continue;
    CHECK(label.bytes.size() == rows * 128 + 12);
    CHECK(std::equal(b.begin(), b.end(), label.bytes.begin() + static_cast<std::ptrdiff_t>(rows * 128)));
  }
  std::vector<std::byte> out;
  Label label;
  CHECK(write_label({}, out).ok());
  CHECK(read_label(out, label).ok() && label.arrays.empty());
}

TEST(what_cannot_be_a_parcel_is_refused) {
  std::vector<std::byte> out;
  auto bytes = bytes_of(8, 1);
  CHECK(!write_label(std::vector<OutgoingArray>{{{Dtype::kFloat32, {3}}, bytes}}, out).ok());
  CHECK(!write_label(std::vector<OutgoingArray>{{{Dtype::kBytes, {8}}, bytes}}, out).ok());
  CHECK(!write_label(std::vector<OutgoingArray>{{{Dtype::kUint8, {-8}}, bytes}}, out).ok());
  CHECK(!write_label(std::vector<OutgoingArray>(70'000, {{Dtype::kUint8, {8}}, bytes}), out).ok());
  CHECK(!write_label(std::vector<OutgoingArray>(10'000, {{Dtype::kUint8, {8}}, bytes}), out).ok());
  CHECK(!write_label(std::vector<OutgoingArray>{{{Dtype::kUint8, std::vector<std::int32_t>(33, 1)}, {}}}, out).ok());
  CHECK((!ArrayFacts{Dtype::kFloat64, {2'000'000'000, 2'000'000'000}}.bytes()));
  CHECK((ArrayFacts{Dtype::kFloat64, {2'000'000'000, 2'000'000'000, 0}}.bytes() == 0));
  CHECK((!ArrayFacts{static_cast<Dtype>(200), {1}}.bytes()));
}

TEST(every_cut_and_every_altered_byte_of_a_label_is_refused_or_harmless) {
  auto bytes = bytes_of(24, 1);
  std::vector<OutgoingArray> arrays{{{Dtype::kFloat32, {2, 3}}, bytes}, {{Dtype::kInt8, {0, 7}}, {}}};
  std::vector<std::byte> good;
  CHECK(write_label(arrays, good).ok());
  for (std::size_t size = 0; size < good.size(); ++size) {
    Label label;
    CHECK(!read_label(std::span(good).first(size), label).ok());
  }
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      auto altered = good;
      altered[at] ^= static_cast<std::byte>(1 << bit);
      Label label;
      if (!read_label(altered, label).ok()) continue;
      std::size_t total = 0;
      for (std::size_t size : label.sizes) total += size;
      CHECK(label.sizes.size() == label.arrays.size());
      CHECK(label.bytes.size() == (label.inlined ? total : 0));
    }
  }
}

TEST(random_bytes_are_refused_or_consistent) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200'000; ++round) {
    std::vector<std::byte> in(random() % 64);
    for (auto& byte : in) byte = static_cast<std::byte>(random() % 4 == 0 ? random() : random() % 3);
    Label label;
    Status status = read_label(in, label);
    CHECK(status.ok() || status.code() == Code::kMismatch);
    if (!status.ok()) continue;
    std::size_t total = 0;
    for (std::size_t size : label.sizes) total += size;
    CHECK(total <= kMostParcelBytes && label.bytes.size() == (label.inlined ? total : 0));
  }
}

CHECK_MAIN
