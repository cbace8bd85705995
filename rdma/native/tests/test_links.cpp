// What both links promise, over every kind of pair.
#include <cstring>
#include <random>
#include <thread>

#include "core/blocking.h"
#include "tests/check.h"
#include "tests/link_pairs.h"

using namespace mm;

namespace {

constexpr double kSpinUs = 5.0;

std::vector<std::byte> pattern(std::size_t bytes, std::uint32_t seed) {
  std::vector<std::byte> data(bytes);
  std::mt19937 random(seed);
  std::size_t i = 0;
  for (; i + 4 <= bytes; i += 4) {
    const auto word = static_cast<std::uint32_t>(random());
    std::memcpy(data.data() + i, &word, 4);
  }
  for (; i < bytes; ++i) data[i] = static_cast<std::byte>(random());
  return data;
}

FrameHeader numbered(std::uint64_t sequence) {
  FrameHeader header;
  header.sequence = sequence;
  return header;
}

void send(Link& link, std::uint64_t sequence, std::span<const std::byte> payload) {
  const Status status = send_message(link.sender(), numbered(sequence), payload, Deadline::after(20), kSpinUs);
  CHECK_TEXT(status.ok(), status.text());
}

void receive(Link& link, std::span<std::byte> into) {
  const Status status = receive_message(link.receiver(), into, Deadline::after(20), kSpinUs);
  CHECK_TEXT(status.ok(), status.text());
}

const std::size_t kSizes[] = {0, 1, 79, 80, 81, 6144, 65535, 65536, 65537, (std::size_t{12} << 20) + 3};

}  // namespace

TEST(every_size_arrives_as_it_was_sent) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    std::thread other([&] {
      for (const std::size_t bytes : kSizes) {
        std::vector<std::byte> into(bytes);
        receive(*pair.b, into);
        send(*pair.b, 0, into);
      }
    });
    for (const std::size_t bytes : kSizes) {
      const auto data = pattern(bytes, static_cast<std::uint32_t>(bytes));
      send(*pair.a, 0, data);
      std::vector<std::byte> back(bytes);
      receive(*pair.a, back);
      CHECK_TEXT(back == data, std::string(kind.name) + " " + std::to_string(bytes));
    }
    other.join();
  }
}

CHECK_MAIN
