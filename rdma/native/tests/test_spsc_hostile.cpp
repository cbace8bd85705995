// What the other side may do to shared memory: anything. A reader or writer must end with an error or with messages,
// never touch memory outside of the ring (AddressSanitizer watches), and never turn for ever.

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include "check.h"
#include "inbox.h"
#include "outbox.h"

using namespace mm::spsc;

namespace {

constexpr std::size_t kCapacity = 512;

struct Ring {
  std::byte* memory = static_cast<std::byte*>(std::aligned_alloc(kLineBytes, memory_bytes(kCapacity)));
  std::array<int, 2> bells{};
  Ring() {
    format(span(), kCapacity);
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, bells.data()) == 0);
  }
  ~Ring() {
    std::free(memory);
    ::close(bells[0]);
    ::close(bells[1]);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  [[nodiscard]] std::span<std::byte> span() const { return {memory, memory_bytes(kCapacity)}; }
  [[nodiscard]] Control& control() const { return *reinterpret_cast<Control*>(memory); }
};

std::uint64_t odd_value(std::mt19937_64& random, std::uint64_t near) {
  switch (random() % 6) {
    case 0:
      return random();
    case 1:
      return near + random() % (2 * kCapacity);
    case 2:
      return near - random() % (2 * kCapacity);
    case 3:
      return (near + random() % (2 * kCapacity)) & ~std::uint64_t{7};
    case 4:
      return 0;
    default:
      return ~std::uint64_t{0} - random() % 64;
  }
}

// A word before a payload that nearly is one.
std::uint64_t odd_record(std::mt19937_64& random, std::uint64_t word) {
  Record record = Record::of(word);
  switch (random() % 5) {
    case 0:
      record.length = static_cast<std::uint32_t>(random());
      break;
    case 1:
      record.length = static_cast<std::uint32_t>(random() % (kCapacity + 16));
      break;
    case 2:
      record.flags = static_cast<std::uint16_t>(random() % 4);
      break;
    case 3:
      ++record.number;
      break;
    default:
      return random();
  }
  return record.word();
}

std::string some_text(std::mt19937_64& random) { return std::string(random() % 900, static_cast<char>(random())); }

}  // namespace

TEST(a_reader_survives_any_memory) {
  std::size_t corrupt = 0;
  std::size_t whole = 0;
  for (std::uint64_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937_64 random(seed);
    const Ring ring;
    Outbox outbox(ring.span(), ring.bells[0], 1 << 20);
    Inbox inbox(ring.span(), ring.bells[1]);
    for (int step = 0; step < 12; ++step) {
      const std::string text = some_text(random);
      outbox.send(std::as_bytes(std::span(text)));
      outbox.push();
      const std::uint64_t produced = ring.control().produced.load();
      if (random() % 4 == 0) {
        const std::size_t at = sizeof(Control) + (random() % kCapacity & ~std::size_t{7});
        std::uint64_t word = 0;
        std::memcpy(&word, ring.memory + at, kWordBytes);
        word = odd_record(random, word);
        std::memcpy(ring.memory + at, &word, kWordBytes);
      }
      if (random() % 16 == 0) ring.control().produced.store(odd_value(random, produced));
      if (random() % 16 == 0) ring.control().consumer_sleeps.store(static_cast<std::uint32_t>(random()));
      if (random() % 16 == 0) ring.control().producer_sleeps.store(static_cast<std::uint32_t>(random()));
      Result result = Result::kDone;
      // Every record has at least a word, so more than these cannot come.
      for (std::size_t turn = 0; result == Result::kDone; ++turn) {
        CHECK(turn <= kCapacity / kWordBytes);
        result = inbox.read([&](std::span<const std::byte> first, std::span<const std::byte> second) {
          std::string copy(reinterpret_cast<const char*>(first.data()), first.size());
          copy.append(reinterpret_cast<const char*>(second.data()), second.size());
          ++whole;
        });
      }
      if (result == Result::kCorrupt) {
        ++corrupt;
        ring.control().produced.store(produced);
        CHECK(inbox.read([](auto, auto) {}) == Result::kCorrupt);
        CHECK(ring.control().capacity == kCapacity);
        break;
      }
    }
  }
  // The seeds reach both ends.
  CHECK(corrupt > 1'000);
  CHECK(whole > 10'000);
}

TEST(a_writer_survives_any_position) {
  std::size_t corrupt = 0;
  for (std::uint64_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937_64 random(seed);
    const Ring ring;
    Outbox outbox(ring.span(), ring.bells[0], 1 << 20);
    Consumer consumer(ring.span());
    for (int step = 0; step < 12; ++step) {
      const std::string text = some_text(random);
      const auto sent = outbox.send(std::as_bytes(std::span(text)));
      const bool pushed = outbox.push();
      if (sent == Outbox::Sent::kCorrupt || !pushed) {
        ++corrupt;
        CHECK(outbox.send({}) == Outbox::Sent::kCorrupt);
        outbox.end();
        CHECK(ring.control().ended.load() == 0);
        break;
      }
      Consumer::Piece piece;
      if (random() % 2 == 0 && consumer.peek(piece) == Result::kDone) consumer.release();
      if (random() % 4 == 0) {
        ring.control().consumed.store(odd_value(random, ring.control().consumed.load()));
      }
    }
  }
  CHECK(corrupt > 1'000);
}

TEST(positions_that_run_backwards_are_corrupt) {
  const Ring ring;
  Outbox outbox(ring.span(), ring.bells[0], 1 << 20);
  Inbox inbox(ring.span(), ring.bells[1]);
  const std::array<std::byte, 8> word{};
  outbox.send(word);
  outbox.send(word);
  CHECK(inbox.read([](auto, auto) {}) == Result::kDone);
  const std::uint64_t consumed = ring.control().consumed.load();
  ring.control().produced.store(consumed - 8);
  CHECK(inbox.read([](auto, auto) {}) == Result::kCorrupt);
  outbox.send(word);
  ring.control().consumed.store(consumed - 8);
  CHECK(outbox.send(word) == Outbox::Sent::kCorrupt);
}

TEST(a_message_without_an_end_is_refused_at_the_limit) {
  const Ring ring;
  Producer producer(ring.span());
  Inbox inbox(ring.span(), ring.bells[1]);
  const std::string piece(producer.largest_record_payload(), 'x');
  // A producer that always says that more follows: records made by a writer of an endless message.
  const std::string endless(2 * kMostMessageBytes, 'x');
  std::size_t written = 0;
  Result result = Result::kWait;
  while (result == Result::kWait) {
    CHECK(producer.write(std::as_bytes(std::span(endless)), written) != Result::kCorrupt);
    result = inbox.read([](auto, auto) {});
  }
  CHECK(result == Result::kCorrupt);
  CHECK(written <= kMostMessageBytes + kCapacity);
}

// The other side writes into a payload while it is copied: any bytes may come, and nothing else happens.
TEST(a_payload_may_change_while_it_is_read) {
  const Ring ring;
  Producer producer(ring.span());
  Consumer consumer(ring.span());
  const std::string text(100, 'a');
  std::size_t written = 0;
  CHECK(producer.write(std::as_bytes(std::span(text)), written) == Result::kDone);
  Consumer::Piece piece;
  CHECK(consumer.peek(piece) == Result::kDone);
  // The length that was checked is the one in use, whatever the word says now.
  const std::uint64_t hostile = ~std::uint64_t{0};
  std::memcpy(ring.memory + sizeof(Control), &hostile, kWordBytes);
  CHECK(piece.size() == 100);
  consumer.release();
  CHECK(ring.control().consumed.load() == kWordBytes + padded(100));
}

CHECK_MAIN
