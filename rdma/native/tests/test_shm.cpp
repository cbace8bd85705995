// What is particular to shared memory: what is agreed on at the start, and a peer that writes nonsense.
#include <poll.h>

#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "core/blocking.h"
#include "core/descriptor.h"
#include "shm/shm_receive.h"
#include "shm/shm_send.h"
#include "tests/check.h"
#include "tests/link_pairs.h"

using namespace mm;

namespace {

// One direction in one piece of memory, as the sanitizers like it: both sides use the same addresses.
struct Direction {
  static constexpr std::align_val_t kAlignment{shm::kLineBytes};

  explicit Direction(const LinkOptions& wanted = pairs::tiny_options())
      : options(wanted),
        layout(options),
        memory(static_cast<std::byte*>(::operator new(layout.bytes(), kAlignment))) {
    std::memset(memory.get(), 0, layout.bytes());
    const pairs::Sockets rings = pairs::unix_sockets();
    prepare_socket(rings.a, "test");
    prepare_socket(rings.b, "test");
    sender = std::make_unique<shm::ShmSend>(mapping(), Descriptor(rings.a), options, stopped);
    receiver = std::make_unique<shm::ShmReceive>(mapping(), Descriptor(rings.b), options, stopped);
  }
  [[nodiscard]] shm::Mapping mapping() const { return {memory.get(), layout.bytes(), options, "test"}; }
  [[nodiscard]] shm::Control& control() const { return *reinterpret_cast<shm::Control*>(memory.get()); }
  [[nodiscard]] shm::FrameSlot& slot(std::size_t index) const {
    return *reinterpret_cast<shm::FrameSlot*>(memory.get() + layout.descriptor_at(index));
  }

  struct Free {
    void operator()(std::byte* at) const { ::operator delete(at, kAlignment); }
  };
  LinkOptions options;
  shm::Layout layout;
  std::unique_ptr<std::byte, Free> memory;
  std::atomic<bool> stopped{false};
  std::unique_ptr<shm::ShmSend> sender;
  std::unique_ptr<shm::ShmReceive> receiver;
};

FrameHeader of_bytes(std::size_t bytes) {
  FrameHeader header;
  header.message_bytes = bytes;
  header.frame_bytes = static_cast<std::uint32_t>(bytes);
  return header;
}

Progress send(Direction& direction, std::size_t bytes) {
  const std::vector<std::byte> payload(bytes, std::byte{7});
  return direction.sender->try_send(of_bytes(bytes), payload);
}

// The reader must refuse what `spoil` did to a frame that was sent well.
template <typename Spoil>
std::string refused(Spoil spoil) {
  Direction direction;
  CHECK(send(direction, 64) == Progress::kDone);
  spoil(direction);
  FrameHeader header;
  CHECK(direction.receiver->try_header(header) == Progress::kFailed);
  CHECK(direction.receiver->failure().code() == Code::kCorrupt);
  CHECK(direction.receiver->try_header(header) == Progress::kFailed);  // and goes on refusing
  std::vector<pollfd> none;
  CHECK(!direction.receiver->arm(none));
  return direction.receiver->failure().text();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

template <typename Make>
std::string argument_error(Make make) {
  try {
    (void)make();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  CHECK(!"nothing was refused");
  return {};
}

}  // namespace

TEST(both_sides_must_mean_the_same_layout) {
  const LinkOptions options = pairs::tiny_options();
  const auto bytes = shm_bytes(options);
  std::vector<std::byte> room(bytes + shm::kLineBytes);
  auto* base = room.data() + (shm::kLineBytes - reinterpret_cast<std::uintptr_t>(room.data()) % shm::kLineBytes);
  const auto map = [&](const LinkOptions& wanted) { return shm::Mapping(base, bytes, wanted, "memory"); };
  map(options);
  map(options);
  LinkOptions other = options;
  other.max_outstanding = 1;
  CHECK(contains(argument_error([&] { return map(other); }), "other link options"));
  auto* control = reinterpret_cast<shm::Control*>(base);
  control->stamp = shm::Layout::stamp() + 1;
  CHECK(contains(argument_error([&] { return map(options); }), "layout version 2, expected 1"));
  control->stamp = 1234;
  CHECK(contains(argument_error([&] { return map(options); }), "something else"));
  other = options;
  other.num_buffers = 2;
  CHECK(contains(argument_error([&] { return map(other); }), "these options need"));
}

TEST(wrong_options_are_refused_by_name) {
  const auto with = [](auto change) {
    LinkOptions options;
    change(options);
    return argument_error([&] { return shm_bytes(options); });
  };
  CHECK(contains(with([](auto& o) { o.num_buffers = 0; }), "num_buffers = 0"));
  CHECK(contains(with([](auto& o) { o.frame_bytes = 63; }), "frame_bytes = 63"));
  CHECK(contains(with([](auto& o) { o.frame_bytes = 100; }), "multiple of 64"));
  CHECK(contains(with([](auto& o) { o.buffer_sizes = 17; }), "buffer_sizes = 17"));
  CHECK(contains(with([](auto& o) { o.max_outstanding = 0; }), "max_outstanding"));
  CHECK(contains(with([](auto& o) { o.frame_bytes = 1U << 30; }), "1 GiB"));
  CHECK(contains(with([](auto& o) { o.num_buffers = 4096; o.frame_bytes = 1U << 24; }), "64 GiB"));
  CHECK(contains(with([](auto& o) { o.spin_us = -1; }), "spin_us"));
}

TEST(descriptors_are_taken_over_where_making_a_link_fails) {
  const LinkOptions options = pairs::tiny_options();
  const auto open = [](int fd) { return ::fcntl(fd, F_GETFD) >= 0; };
  const pairs::Sockets one = pairs::unix_sockets();
  const pairs::Sockets two = pairs::unix_sockets();
  const int right = pairs::shared_memory(shm_bytes(options));
  const int small = pairs::shared_memory(shm_bytes(options) - 1);
  CHECK(contains(argument_error([&] { return shm_link({right, small, one.a, two.a}, options); }), "memory to receive"));
  CHECK(!open(right) && !open(small) && !open(one.a) && !open(two.a));
  bool refused_file = false;
  const int file = ::open("/dev/null", O_RDWR);
  try {
    (void)tcp_link(file, {});
  } catch (const std::system_error& error) {
    refused_file = error.code().value() == ENOTSOCK;
  }
  CHECK(refused_file && !open(file));
  ::close(one.b);
  ::close(two.b);
}

TEST(impossible_counts_are_corrupt) {
  CHECK(contains(refused([](auto& d) { d.control().published = 3; }), "count of frames it sent"));
  CHECK(contains(refused([](auto& d) { d.control().published = ~std::uint64_t{0}; }), "count of frames it sent"));

  for (const std::uint64_t count : {std::uint64_t{3}, ~std::uint64_t{0}}) {
    Direction direction;
    while (send(direction, 64) == Progress::kDone) {
    }
    direction.control().consumed = count;
    CHECK(send(direction, 64) == Progress::kFailed);
    CHECK(direction.sender->failure().code() == Code::kCorrupt);
  }
}

TEST(a_count_that_goes_back_is_corrupt) {
  Direction direction;
  FrameHeader header;
  std::vector<std::byte> into(64);
  for (int i = 0; i < 5; ++i) {
    CHECK(send(direction, 64) == Progress::kDone);
    CHECK(direction.receiver->try_header(header) == Progress::kDone);
    CHECK(direction.receiver->try_payload(into) == Progress::kDone);
  }
  direction.control().published = 4;
  CHECK(direction.receiver->try_header(header) == Progress::kFailed);
  CHECK(direction.receiver->failure().code() == Code::kCorrupt);
}

TEST(impossible_descriptors_are_corrupt) {
  CHECK(contains(refused([](auto& d) { d.slot(0).size_class = 3; }), "class 3"));
  CHECK(contains(refused([](auto& d) { d.slot(0).size_class = ~0U; }), "class 4294967295"));
  CHECK(contains(refused([](auto& d) { d.slot(0).slot = 1; }), "expected buffer 0"));
  CHECK(contains(refused([](auto& d) { d.slot(0).slot = ~0U; }), "expected buffer 0"));
  CHECK(contains(refused([](auto& d) { d.slot(0).header[20] ^= std::byte{1}; }), "checksum"));
  CHECK(contains(refused([](auto& d) {
                   encode_header(of_bytes(65), std::span<std::byte, kFrameHeaderBytes>(d.slot(0).header));
                 }),
                 "65 bytes in a buffer of class 0"));
}

TEST(buffers_of_every_class_come_round) {
  Direction direction;  // one buffer of 64, 128 and 256 bytes; two descriptors
  CHECK(send(direction, 64) == Progress::kDone);
  CHECK(send(direction, 1) == Progress::kIdle);     // no second buffer of 64, and a larger one is not taken
  CHECK(send(direction, 128) == Progress::kDone);
  CHECK(send(direction, 256) == Progress::kIdle);   // no third descriptor
  std::vector<pollfd> polls;
  CHECK(direction.sender->arm(polls) && polls.size() == 1);
  CHECK(::poll(polls.data(), 1, 0) == 0);
  FrameHeader header;
  std::vector<std::byte> into(64);
  CHECK(direction.receiver->try_header(header) == Progress::kDone);
  CHECK(direction.receiver->try_payload(into) == Progress::kDone);
  CHECK(::poll(polls.data(), 1, 5000) == 1);  // it rang
  direction.sender->disarm();
  CHECK(send(direction, 256) == Progress::kDone);
  CHECK(send(direction, 257) == Progress::kFailed);
  CHECK(direction.sender->failure().code() == Code::kLocal);
}

TEST(what_was_published_before_the_end_is_read) {
  Direction direction;
  CHECK(send(direction, 64) == Progress::kDone);
  CHECK(send(direction, 100) == Progress::kDone);
  direction.sender.reset();
  direction.receiver->disarm();  // notices the end
  FrameHeader header;
  for (const std::size_t bytes : {64, 100}) {
    std::vector<std::byte> into(bytes);
    CHECK(direction.receiver->try_header(header) == Progress::kDone);
    CHECK(header.frame_bytes == bytes);
    CHECK(direction.receiver->try_payload(into) == Progress::kDone);
    CHECK(into == std::vector<std::byte>(bytes, std::byte{7}));
  }
  CHECK(direction.receiver->try_header(header) == Progress::kFailed);
  CHECK(direction.receiver->failure().code() == Code::kPeerLost);
}

TEST(no_doorbell_is_lost) {
  // Without spinning every wait blocks, and random pauses on both sides move the moments of sleeping and ringing
  // against each other. A lost doorbell would block until the deadline.
  LinkOptions options = pairs::tiny_options();
  Direction direction(options);
  constexpr std::uint64_t kFrames = 20000;
  const auto dawdle = [](std::mt19937& random) {
    for (auto left = random() % 100; left > 0; --left) cpu_pause();
    if (random() % 64 == 0) std::this_thread::yield();
  };
  std::thread sending([&] {
    std::mt19937 random(1);
    std::vector<std::byte> payload(200);
    for (std::uint64_t i = 0; i < kFrames; ++i) {
      dawdle(random);
      const auto part = std::span(payload).first(8 + random() % 192);
      std::memcpy(part.data(), &i, sizeof i);
      auto step = [&] { return direction.sender->try_send(of_bytes(part.size()), part); };
      const Status status = run_half(*direction.sender, step, Deadline::after(20), 0.0);
      CHECK_TEXT(status.ok(), status.text());
    }
  });
  std::mt19937 random(2);
  std::vector<std::byte> into(200);
  for (std::uint64_t i = 0; i < kFrames; ++i) {
    dawdle(random);
    FrameHeader header;
    auto step = [&] { return direction.receiver->try_header(header); };
    const Status status = run_half(*direction.receiver, step, Deadline::after(20), 0.0);
    CHECK_TEXT(status.ok(), status.text());
    CHECK(direction.receiver->try_payload(std::span(into).first(header.frame_bytes)) == Progress::kDone);
    std::uint64_t number = 0;
    std::memcpy(&number, into.data(), sizeof number);
    CHECK(number == i);
  }
  sending.join();
}

TEST(sizes_are_exact) {
  const LinkOptions options;
  CHECK(options.buffer_bytes() == 33030144);
  CHECK(shm_bytes(options) == 16384 + 256 * 128 + 33030144);
  auto pair = pairs::shm(pairs::tiny_options());
  CHECK(pair.a->pool_bytes() == 2 * shm_bytes(pairs::tiny_options()));
  CHECK(pair.a->provider() == "shm");
}

CHECK_MAIN
