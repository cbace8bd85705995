#include "spsc.h"

#include <poll.h>
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

// Exactly the memory of a ring, so that a sanitizer sees every step beyond it.
class Memory {
 public:
  explicit Memory(std::size_t capacity)
      : bytes_(memory_bytes(capacity)), memory_(static_cast<std::byte*>(std::aligned_alloc(kLineBytes, bytes_))) {
    std::memset(memory_, 0, bytes_);
    format(span(), capacity);
  }
  ~Memory() { std::free(memory_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] std::span<std::byte> span() const { return {memory_, bytes_}; }
  [[nodiscard]] Control& control() const { return *reinterpret_cast<Control*>(memory_); }

 private:
  std::size_t bytes_;
  std::byte* memory_;
};

struct Bells {
  std::array<int, 2> ends{};
  Bells() { CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0); }
  ~Bells() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
};

// Sleeps until the doorbell rings. A minute without a ring is a lost wake-up.
void sleep_on(int descriptor) {
  pollfd wait{descriptor, POLLIN, 0};
  CHECK_TEXT(::poll(&wait, 1, 50'000) == 1, "nobody rang");
  std::array<char, 256> bytes;
  CHECK(::recv(descriptor, bytes.data(), bytes.size(), 0) > 0);
}

std::string pattern(std::size_t bytes, std::size_t seed) {
  std::string text(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(seed * 31 + i * 7 + i / 251);
  return text;
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

Result take(Inbox& inbox, std::string& message) {
  return inbox.read([&](std::span<const std::byte> first, std::span<const std::byte> second) {
    message.assign(reinterpret_cast<const char*>(first.data()), first.size());
    message.append(reinterpret_cast<const char*>(second.data()), second.size());
  });
}

template <class Function>
std::string refusal(Function&& function) {
  try {
    function();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST(every_size_passes_a_small_ring_at_every_offset) {
  constexpr std::size_t kCapacity = 1024;
  const Memory memory(kCapacity);
  const Bells bells;
  Outbox outbox(memory.span(), bells.ends[0], 1 << 20);
  Inbox inbox(memory.span(), bells.ends[1]);
  std::string got;
  for (std::size_t round = 0; round < 3; ++round) {
    for (std::size_t size = 0; size <= kCapacity + 300; ++size) {
      const std::string sent = pattern(size, round + size);
      CHECK(outbox.send(bytes_of(sent)) == Outbox::Sent::kSent);
      Result result = take(inbox, got);
      while (result == Result::kWait && !outbox.idle()) {
        CHECK(outbox.push());
        result = take(inbox, got);
      }
      CHECK(result == Result::kDone);
      CHECK(got == sent);
      CHECK(outbox.idle());
      CHECK(outbox.pending_bytes() == 0);
    }
  }
  CHECK(take(inbox, got) == Result::kWait);
  CHECK(!inbox.ended());
  outbox.end();
  CHECK(inbox.ended());
  CHECK(outbox.send(bytes_of(got)) == Outbox::Sent::kEnded);
}

TEST(a_ring_fills_to_the_last_byte_and_queues_in_order) {
  const Memory memory(256);
  const Bells bells;
  Outbox outbox(memory.span(), bells.ends[0], 100);
  Inbox inbox(memory.span(), bells.ends[1]);
  const std::string eight = pattern(8, 1);
  for (int i = 0; i < 16; ++i) CHECK(outbox.send(bytes_of(eight)) == Outbox::Sent::kSent);
  CHECK(outbox.idle());
  CHECK(outbox.send(bytes_of("")) == Outbox::Sent::kSent);
  CHECK(!outbox.idle());
  CHECK(outbox.pending_bytes() == 0);
  CHECK(outbox.send(bytes_of(pattern(60, 2))) == Outbox::Sent::kSent);
  CHECK(outbox.send(bytes_of(pattern(41, 2))) == Outbox::Sent::kBacklog);
  CHECK(outbox.pending_bytes() == 60);
  std::string got;
  for (int i = 0; i < 16; ++i) {
    CHECK(take(inbox, got) == Result::kDone);
    CHECK(got == eight);
  }
  CHECK(outbox.push());
  CHECK(take(inbox, got) == Result::kDone && got.empty());
  CHECK(take(inbox, got) == Result::kDone && got == pattern(60, 2));
  const std::string long_one(kMostMessageBytes + 1, 'x');
  CHECK(outbox.send(bytes_of(long_one)) == Outbox::Sent::kTooLong);
}

TEST(what_is_still_queued_makes_the_end_no_goodbye) {
  const Memory memory(256);
  const Bells bells;
  Outbox outbox(memory.span(), bells.ends[0], 1 << 20);
  Inbox inbox(memory.span(), bells.ends[1]);
  CHECK(outbox.send(bytes_of(pattern(1000, 3))) == Outbox::Sent::kSent);
  outbox.end();
  std::string got;
  CHECK(take(inbox, got) == Result::kWait);
  CHECK(!inbox.ended());
}

TEST(nobody_attaches_to_what_is_no_free_ring) {
  const Memory memory(256);
  const Producer producer(memory.span());
  CHECK(refusal([&] { Producer again(memory.span()); }).find("already has a producer") != std::string::npos);
  const Consumer consumer(memory.span());
  CHECK(refusal([&] { Consumer again(memory.span()); }).find("already has a consumer") != std::string::npos);
  CHECK(refusal([&] { format(memory.span(), 512); }).find("needs") != std::string::npos);
  CHECK(refusal([&] { format(memory.span(), 300); }).find("power of two") != std::string::npos);
  for (const std::uint64_t capacity : {std::uint64_t{512}, std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    const Memory other(256);
    other.control().capacity = capacity;
    CHECK(!refusal([&] { Consumer attached(other.span()); }).empty());
  }
  const Memory old(256);
  old.control().version = 0;
  CHECK(refusal([&] { Consumer attached(old.span()); }).find("layout 0") != std::string::npos);
  const Memory foreign(256);
  foreign.control().magic = 1;
  CHECK(refusal([&] { Consumer attached(foreign.span()); }).find("no ring") != std::string::npos);
}

TEST(what_comes_between_the_look_and_the_sleep_keeps_a_side_awake) {
  const Memory memory(256);
  Producer producer(memory.span());
  Consumer consumer(memory.span());
  Consumer::Piece piece;
  CHECK(consumer.peek(piece) == Result::kWait);
  const std::string text = pattern(40, 1);
  std::size_t written = 0;
  CHECK(producer.write(bytes_of(text), written) == Result::kDone);
  CHECK(!producer.must_wake());
  CHECK(consumer.sleep() == Result::kDone);
  CHECK(consumer.peek(piece) == Result::kDone);
  consumer.release();
  CHECK(consumer.sleep() == Result::kWait);

  const std::string long_one = pattern(500, 2);
  written = 0;
  CHECK(producer.write(bytes_of(long_one), written) == Result::kWait);
  CHECK(producer.must_wake());
  CHECK(!producer.must_wake());
  while (consumer.peek(piece) == Result::kDone) {
    consumer.release();
    CHECK(!consumer.must_wake());
  }
  CHECK(producer.sleep(long_one.size() - written) == Result::kDone);
  CHECK(producer.write(bytes_of(long_one), written) == Result::kWait);
  CHECK(producer.sleep(long_one.size() - written) == Result::kWait);
  CHECK(consumer.peek(piece) == Result::kDone);
  consumer.release();
  CHECK(!consumer.must_wake());  // more than half full: not worth a wake-up yet
  CHECK(consumer.peek(piece) == Result::kDone);
  consumer.release();
  CHECK(consumer.must_wake());
  CHECK(!consumer.must_wake());
}

// Two threads that sleep whenever they can, through a ring so small that both sleep often. Under ThreadSanitizer this
// also shows that payloads are handed over by the positions alone.
TEST(no_wake_up_is_lost_and_nothing_races) {
  const Memory memory(1024);
  const Bells bells;
  Outbox outbox(memory.span(), bells.ends[0], std::size_t{1} << 30);
  Inbox inbox(memory.span(), bells.ends[1]);
  constexpr std::size_t kMessages = 60'000;
  std::thread receiver([&] {
    std::minstd_rand random(2);
    std::string got;
    for (std::size_t i = 0; i < kMessages; ++i) {
      while (take(inbox, got) == Result::kWait) sleep_on(bells.ends[1]);
      CHECK(got == pattern(i % 17 == 0 ? i % 3000 : i % 100, i));
      if (random() % 64 == 0) std::this_thread::yield();
    }
  });
  std::minstd_rand random(1);
  for (std::size_t i = 0; i < kMessages; ++i) {
    CHECK(outbox.send(bytes_of(pattern(i % 17 == 0 ? i % 3000 : i % 100, i))) == Outbox::Sent::kSent);
    while (!outbox.idle()) {
      sleep_on(bells.ends[0]);
      CHECK(outbox.push());
    }
    if (random() % 64 == 0) std::this_thread::yield();
  }
  receiver.join();
}

// Each side sleeps until the other has answered, so that a lost wake-up stops both.
TEST(a_ball_goes_to_and_fro) {
  const Memory there(256);
  const Memory back(256);
  const Bells bells;
  constexpr std::size_t kTurns = 20'000;
  auto play = [&](Outbox& outbox, Inbox& inbox, int bell, bool serves) {
    std::string got;
    for (std::size_t i = 0; i < kTurns; ++i) {
      if (serves) CHECK(outbox.send(bytes_of(pattern(i % 40, i))) == Outbox::Sent::kSent);
      while (take(inbox, got) == Result::kWait) sleep_on(bell);
      CHECK(got == pattern(i % 40, i));
      if (!serves) CHECK(outbox.send(bytes_of(got)) == Outbox::Sent::kSent);
    }
  };
  Outbox ours(there.span(), bells.ends[0], 1000);
  Inbox from_them(back.span(), bells.ends[0]);
  Outbox theirs(back.span(), bells.ends[1], 1000);
  Inbox from_us(there.span(), bells.ends[1]);
  std::thread other([&] { play(theirs, from_us, bells.ends[1], false); });
  play(ours, from_them, bells.ends[0], true);
  other.join();
}

TEST(many_threads_send_while_one_pushes) {
  const Memory memory(1024);
  const Bells bells;
  Outbox outbox(memory.span(), bells.ends[0], std::size_t{1} << 30);
  Inbox inbox(memory.span(), bells.ends[1]);
  constexpr std::size_t kThreads = 3;
  constexpr std::size_t kMessages = 5'000;
  std::array<std::thread, kThreads> senders;
  std::atomic<std::size_t> running = kThreads;
  for (std::size_t name = 0; name < kThreads; ++name) {
    senders[name] = std::thread([&, name] {
      for (std::size_t i = 0; i < kMessages; ++i) {
        std::string message = std::to_string(i);
        message.insert(message.begin(), static_cast<char>('a' + name));
        CHECK(outbox.send(bytes_of(message)) == Outbox::Sent::kSent);
      }
      --running;
    });
  }
  std::thread receiver([&] {
    std::array<std::size_t, kThreads> next{};
    std::string got;
    for (std::size_t i = 0; i < kThreads * kMessages; ++i) {
      while (take(inbox, got) == Result::kWait) sleep_on(bells.ends[1]);
      const auto name = static_cast<std::size_t>(got[0] - 'a');
      CHECK(got.substr(1) == std::to_string(next[name]++));
    }
  });
  while (running > 0 || !outbox.idle()) {
    pollfd wait{bells.ends[0], POLLIN, 0};
    if (::poll(&wait, 1, 1) == 1) {
      std::array<char, 256> bytes;
      CHECK(::recv(bells.ends[0], bytes.data(), bytes.size(), 0) > 0);
    }
    CHECK(outbox.push());
  }
  for (std::thread& sender : senders) sender.join();
  receiver.join();
}

CHECK_MAIN
