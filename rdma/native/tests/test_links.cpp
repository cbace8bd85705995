// What both links promise, over every kind of pair.
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
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

TEST(both_directions_at_once) {
  constexpr std::size_t kBytes = (std::size_t{1} << 20) + 7;
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    const auto data = pattern(kBytes, 5);
    std::vector<std::thread> threads;
    for (Link* link : {pair.a.get(), pair.b.get()}) {
      threads.emplace_back([&data, link] {
        for (int i = 0; i < 3; ++i) send(*link, 0, data);
      });
      threads.emplace_back([&data, link] {
        std::vector<std::byte> into(kBytes);
        for (int i = 0; i < 3; ++i) {
          receive(*link, into);
          CHECK(into == data);
        }
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

TEST(one_thread_can_drive_all_four_halves) {
  // Nothing blocks, so one thread that goes round moves everything, in parts.
  constexpr std::size_t kBytes = 300001;
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    struct Side {
      Link* link;
      std::vector<std::byte> out;
      std::vector<std::byte> in;
      std::size_t sent = 0;
      std::size_t received = 0;
      bool in_frame = false;
      FrameHeader header{};
    };
    Side sides[2] = {{pair.a.get(), pattern(kBytes, 1), std::vector<std::byte>(kBytes)},
                     {pair.b.get(), pattern(kBytes, 2), std::vector<std::byte>(kBytes)}};
    bool parted = false;
    const auto deadline = Deadline::after(20);
    while (sides[0].received < kBytes || sides[1].received < kBytes) {
      CHECK(!deadline.passed());
      for (Side& side : sides) {
        if (side.sent < kBytes) {
          FrameHeader header;
          header.message_bytes = kBytes;
          header.offset = side.sent;
          const auto part = std::span<const std::byte>(side.out).subspan(
              side.sent, std::min(side.link->sender().frame_limit(kBytes), kBytes - side.sent));
          header.frame_bytes = static_cast<std::uint32_t>(part.size());
          const Progress progress = side.link->sender().try_send(header, part);
          CHECK(progress != Progress::kFailed);
          if (progress == Progress::kDone) side.sent += part.size();
          if (progress == Progress::kMoved) parted = true;
        }
        if (!side.in_frame && side.received < kBytes) {
          const Progress progress = side.link->receiver().try_header(side.header);
          CHECK(progress != Progress::kFailed);
          side.in_frame = progress == Progress::kDone;
        }
        if (side.in_frame) {
          FrameHeader again;  // the same header until the payload is taken
          CHECK(side.link->receiver().try_header(again) == Progress::kDone && again.offset == side.received);
          const auto part = std::span(side.in).subspan(side.received, side.header.frame_bytes);
          const Progress progress = side.link->receiver().try_payload(part);
          CHECK(progress != Progress::kFailed);
          if (progress == Progress::kDone) {
            side.received += part.size();
            side.in_frame = false;
          }
        }
      }
    }
    CHECK(sides[0].in == sides[1].out && sides[1].in == sides[0].out);
    CHECK(parted || std::strcmp(kind.name, "tiny unix") != 0);
  }
}

TEST(a_peer_that_stops_reading_makes_the_sender_idle) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    const auto data = pattern(4096, 3);
    const std::size_t bytes = std::min(pair.a->sender().frame_limit(4096), std::size_t{4096});
    FrameHeader header;
    header.message_bytes = header.frame_bytes = static_cast<std::uint32_t>(bytes);
    const auto part = std::span<const std::byte>(data).first(bytes);
    int sent = 0;
    const auto fill = [&] {
      Progress progress = Progress::kDone;
      while (progress != Progress::kIdle) {
        progress = pair.a->sender().try_send(header, part);
        CHECK(progress != Progress::kFailed);
        if (progress == Progress::kDone) ++sent;
        CHECK(sent < 100000);
      }
    };
    // It may be woken for nothing a few times, as by a device that has done with what was sent.
    std::vector<pollfd> polls;
    for (int woken = 1; woken > 0;) {
      fill();
      polls.clear();
      const bool armed = pair.a->sender().arm(polls);
      CHECK_TEXT(armed == !polls.empty(), kind.name);
      const bool quiet = armed && ::poll(polls.data(), static_cast<nfds_t>(polls.size()), 20) == 0;
      pair.a->sender().disarm();
      woken = quiet ? 0 : woken + 1;
      CHECK_TEXT(woken < 500, kind.name);
    }

    // Once it reads again, the wait ends and the frame that waited goes out whole.
    std::thread reader([&] {
      std::vector<std::byte> into(bytes);
      for (int i = 0; i <= sent; ++i) {
        receive(*pair.b, into);
        CHECK(std::memcmp(into.data(), data.data(), bytes) == 0);
      }
    });
    auto step = [&] { return pair.a->sender().try_send(header, part); };
    CHECK(run_half(pair.a->sender(), step, Deadline::after(20), 0.0).ok());
    reader.join();
  }
}

TEST(a_silent_peer_is_a_timeout_that_costs_no_processor) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    std::byte into{};
    timespec before{};
    timespec after{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    const Status status = receive_message(pair.a->receiver(), {&into, 1}, Deadline::after(0.2), kSpinUs);
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    CHECK(status.code() == Code::kTimeout);
    const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                        static_cast<double>(after.tv_nsec - before.tv_nsec) * 1e-9;
    CHECK_TEXT(used < 0.02, std::to_string(used) + " seconds");
  }
}

TEST(a_late_peer_wakes_the_waiter) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    for (const int delay_us : {0, 10, 100, 1000, 20000}) {
      std::thread other([&] {
        const timespec delay{0, delay_us * 1000};
        ::nanosleep(&delay, nullptr);
        send(*pair.b, 0, std::vector<std::byte>(3));
      });
      std::vector<std::byte> into(3);
      receive(*pair.a, into);
      other.join();
    }
  }
}

TEST(a_peer_that_closes_is_lost_after_all_that_it_sent) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    const auto data = pattern(60, 9);
    send(*pair.b, 4, data);
    pair.b.reset();
    std::vector<std::byte> into(60);
    receive(*pair.a, into);
    CHECK(into == data);
    const Status status = receive_message(pair.a->receiver(), into, Deadline::after(20), kSpinUs);
    CHECK_TEXT(status.code() == Code::kPeerLost, status.text());
    FrameHeader header;
    CHECK(pair.a->receiver().try_header(header) == Progress::kFailed);  // for ever
    // The sender finds out too, at the latest when nobody took what it sent.
    Status sent;
    for (int i = 0; i < 1000 && sent.ok(); ++i) {
      sent = send_message(pair.a->sender(), {}, data, Deadline::after(20), 0.0);
    }
    CHECK_TEXT(sent.code() == Code::kPeerLost, sent.text());
  }
}

TEST(a_peer_that_closes_wakes_a_blocked_waiter) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    std::thread other([&] {
      const timespec delay{0, 10'000'000};
      ::nanosleep(&delay, nullptr);
      pair.b.reset();
    });
    std::byte into{};
    const auto start = Clock::now();
    const Status status = receive_message(pair.a->receiver(), {&into, 1}, Deadline::after(20), 0.0);
    CHECK(status.code() == Code::kPeerLost);
    CHECK(Clock::now() - start < std::chrono::seconds(10));
    other.join();
  }
}

TEST(abort_ends_armed_waits_on_both_sides) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    std::byte here{};
    std::byte there{};
    Status mine;
    Status theirs;
    std::thread waiting([&] { mine = receive_message(pair.a->receiver(), {&here, 1}, Deadline::after(20), 0.0); });
    std::thread peer([&] { theirs = receive_message(pair.b->receiver(), {&there, 1}, Deadline::after(20), 0.0); });
    const timespec delay{0, 10'000'000};
    ::nanosleep(&delay, nullptr);
    const auto start = Clock::now();
    pair.a->abort();
    waiting.join();
    peer.join();
    CHECK(Clock::now() - start < std::chrono::seconds(10));
    CHECK_TEXT(mine.code() == Code::kAborted, mine.text());
    CHECK_TEXT(theirs.code() == Code::kPeerLost, theirs.text());
    FrameHeader header;
    std::vector<pollfd> polls;
    CHECK(pair.a->sender().try_send(header, {}) == Progress::kFailed);
    CHECK(pair.a->sender().failure().code() == Code::kAborted);
    CHECK(!pair.a->sender().arm(polls) && !pair.a->receiver().arm(polls) && polls.empty());
    pair.a->abort();  // harmless when repeated
  }
}

TEST(abort_ends_a_send_that_waits) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    Status status;
    std::thread sending([&] {
      const auto data = pattern(std::size_t{1} << 20, 1);
      while (status.ok()) status = send_message(pair.a->sender(), {}, data, Deadline::after(20), 0.0);
    });
    const timespec delay{0, 20'000'000};
    ::nanosleep(&delay, nullptr);
    pair.a->abort();
    sending.join();
    CHECK_TEXT(status.code() == Code::kAborted, status.text());
  }
}

TEST(wrong_use_is_a_local_fault) {
  for (const auto& kind : pairs::kKinds) {
    auto pair = kind.make();
    std::vector<std::byte> bytes(10);
    FrameHeader header;
    header.message_bytes = header.frame_bytes = 9;
    CHECK(pair.a->sender().try_send(header, bytes) == Progress::kFailed);
    CHECK(pair.a->sender().failure().code() == Code::kLocal);
    CHECK(pair.b->receiver().try_payload(bytes) == Progress::kFailed);
    CHECK(pair.b->receiver().failure().code() == Code::kLocal);
  }
}

// A stream that ends or is spoilt anywhere in a frame, on a raw socket.
TEST(torn_and_spoilt_streams) {
  const auto data = pattern(200, 1);
  FrameHeader header;
  header.message_bytes = header.frame_bytes = 200;
  std::vector<std::byte> stream(kFrameHeaderBytes);
  encode_header(header, std::span<std::byte, kFrameHeaderBytes>(stream.data(), kFrameHeaderBytes));
  stream.insert(stream.end(), data.begin(), data.end());
  std::vector<std::byte> into(200);
  const auto outcome = [&](std::span<const std::byte> bytes) {
    const auto sockets = pairs::unix_sockets();
    const auto link = tcp_link(sockets.a, {});
    CHECK(::write(sockets.b, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    ::close(sockets.b);
    return receive_message(link->receiver(), into, Deadline::after(20), 0.0);
  };
  for (std::size_t cut = 0; cut < stream.size(); ++cut) {
    const Status status = outcome(std::span<const std::byte>(stream).first(cut));
    CHECK_TEXT(status.code() == Code::kPeerLost, status.text());
    if (cut == 5) CHECK_TEXT(status.text().find("5 bytes of a header") != std::string::npos, status.text());
    if (cut == 85) CHECK_TEXT(status.text().find("5 of 200") != std::string::npos, status.text());
  }
  for (std::size_t bit = 0; bit < kFrameHeaderBytes * 8; bit += 5) {
    auto spoilt = stream;
    spoilt[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    CHECK(outcome(spoilt).code() == Code::kCorrupt);
  }
  CHECK(outcome(stream).ok() && into == data);
}

CHECK_MAIN
