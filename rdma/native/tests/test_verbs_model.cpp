// What a link makes of a modelled cable, in the fabric's own time: nothing here depends on the machine. Both hosts run
// in this thread. Each is busy while it copies a frame, and for a moment with every call; the cable takes latency +
// bytes / bandwidth for each message, in order. Prints a table.
#include <thread>

#include "tests/check.h"
#include "tests/fake_fabric.h"
#include "tests/sockets.h"
#include "verbs/verbs_link.h"

using namespace mm;
using namespace mm::verbs;
using fake_fabric::Fabric;

namespace {

// Thunderbolt 5 as modelled; copies as measured on a slow machine.
constexpr double kLatencyNs = 10000;
constexpr double kBytesPerNs = 8;
constexpr double kCopyBytesPerNs = 15;
constexpr double kCallNs = 500;

constexpr std::size_t kSmall = 6 * 1024;
constexpr std::size_t kMiddle = 64 * 1024;
constexpr std::size_t kLarge = std::size_t{12} << 20;

double limit_ns(std::size_t bytes) { return kLatencyNs + static_cast<double>(bytes) / kBytesPerNs; }

class Model {
 public:
  explicit Model(const LinkOptions& options)
      : fabric_(std::string("manual_clock=1;pool_bytes=268435456;") + fake_fabric::kOneCable) {
    const pairs::Sockets control = pairs::tcp_sockets();
    LinkSettings settings;
    settings.links_per_device = 1;
    settings.retransmit_ms = 10000;  // of the machine's time, which means nothing here
    Status why_a;
    Status why_b;
    const auto cable = [this](const char* name) {
      std::vector<Cable> cables;
      cables.push_back({fabric_.open(name), name});
      return cables;
    };
    auto at_a = cable("a_fake0");
    auto at_b = cable("b_fake0");
    std::thread other([&] {
      b_ = verbs_link(control.b, std::move(at_b), options, settings, Deadline::after(30), why_b);
    });
    a_ = verbs_link(control.a, std::move(at_a), options, settings, Deadline::after(30), why_a);
    other.join();
    CHECK_TEXT(a_ && b_, why_a.text() + why_b.text());
    fabric_.command("set latency_ns=" + std::to_string(static_cast<long>(kLatencyNs)));
    fabric_.command("set bytes_per_second=" + std::to_string(static_cast<long>(kBytesPerNs * 1e9)));
  }

  // Nanoseconds until the receiver has all of so many messages, one after the other.
  double send(std::size_t bytes, int count) {
    const std::uint64_t start = now_;
    const std::uint64_t step = bytes < kLarge ? 100 : 500;
    Sending sending{a_->engine(), bytes, count};
    Receiving receiving{b_->engine(), bytes, count};
    while (receiving.left > 0) {
      const bool moved = sending.go_on(now_);
      if (!receiving.go_on(now_) && !moved) advance(step);
      CHECK(now_ - start < 1'000'000'000'000);
    }
    const auto took = static_cast<double>(now_ - start);
    // What is still under way, such as the last report, is none of the next measurement's.
    for (int i = 0; i < 30; ++i) {
      advance(1000);
      (void)a_->counts();
    }
    return took;
  }

  [[nodiscard]] const VerbsLink& link() const { return *a_; }
  [[nodiscard]] std::uint64_t regions() { return fabric_.counter("regions") / 2; }
  void check_sound() {
    CHECK(a_->counts().retransmitted == 0 && a_->counts().lost == 0 && b_->counts().lost == 0);
    CHECK(fabric_.counter("cable0.end0.no_receive") == 0 && fabric_.counter("cable0.end1.no_receive") == 0);
  }

 private:
  static double busy_ns(std::size_t bytes) { return kCallNs + static_cast<double>(bytes) / kCopyBytesPerNs; }

  struct Sending {
    Engine& engine;
    std::size_t bytes;
    int left;
    std::size_t offset = 0;
    std::size_t frame = 0;
    std::uint64_t sequence = 0;
    std::uint64_t busy_until = 0;
    bool filling = false;

    bool go_on(std::uint64_t now) {
      if (left == 0 || now < busy_until) return false;
      Status why;
      if (!filling) {
        frame = std::min(engine.fit().frame_limit(bytes), bytes - offset);
        std::span<std::byte> buffer;
        const Progress opened = engine.open(frame, sequence, buffer, why);
        CHECK_TEXT(opened != Progress::kFailed, why.text());
        if (opened == Progress::kIdle) return false;
        FrameHeader header;
        header.message_bytes = bytes;
        header.offset = offset;
        header.frame_bytes = static_cast<std::uint32_t>(frame);
        encode_header(header, buffer.subspan<kPrefixBytes, kFrameHeaderBytes>());
        filling = true;
        busy_until = now + static_cast<std::uint64_t>(busy_ns(frame));
        return true;
      }
      CHECK(engine.publish(sequence, frame, WireKind::kData, why) == Progress::kDone);
      filling = false;
      offset += frame;
      if (offset == bytes) {
        offset = 0;
        --left;
      }
      return true;
    }
  };

  struct Receiving {
    Engine& engine;
    std::size_t bytes;
    int left;
    std::size_t received = 0;
    std::size_t frame = 0;
    std::uint64_t busy_until = 0;
    bool taking = false;

    bool go_on(std::uint64_t now) {
      if (left == 0 || now < busy_until) return false;
      if (!taking) {
        std::span<const std::byte> head;
        std::span<const std::byte> payload;
        Status why;
        const Progress came = engine.front(head, payload, why);
        CHECK_TEXT(came != Progress::kFailed, why.text());
        if (came == Progress::kIdle) return false;
        frame = payload.size();
        taking = true;
        busy_until = now + static_cast<std::uint64_t>(busy_ns(frame));
        return true;
      }
      received += frame;
      taking = false;
      engine.taken(received == bytes);
      if (received == bytes) {
        received = 0;
        --left;
      }
      return true;
    }
  };

  void advance(std::uint64_t nanoseconds) {
    fabric_.command("advance " + std::to_string(nanoseconds));
    now_ += nanoseconds;
  }

  Fabric fabric_;
  std::unique_ptr<VerbsLink> a_;
  std::unique_ptr<VerbsLink> b_;
  std::uint64_t now_ = 0;
};

struct Row {
  double of_limit_small;
  double of_limit_middle;
  double of_limit_large;
  double stream_large;  // of the bandwidth
  std::size_t pool_bytes;
};

Row measure(const char* name, const LinkOptions& options, bool streams) {
  Model model(options);
  Row row{};
  row.pool_bytes = model.link().pool_bytes();
  std::printf("  %-24s", name);
  const auto one = [&](std::size_t bytes) {
    const double took = model.send(bytes, 1);
    std::printf(" %9.1f", took / 1000);
    return limit_ns(bytes) / took;
  };
  row.of_limit_small = one(kSmall);
  row.of_limit_middle = one(kMiddle);
  row.of_limit_large = one(kLarge);
  constexpr int kMessages = 3;
  if (streams) row.stream_large = kMessages * static_cast<double>(kLarge) / kBytesPerNs / model.send(kLarge, kMessages);
  std::printf("  %5.1f %% %5.1f %% %5.1f %%  %9zu bytes, %zu region, %zu queue pairs", 100 * row.of_limit_small,
              100 * row.of_limit_middle, 100 * row.of_limit_large, row.pool_bytes,
              static_cast<std::size_t>(model.regions()), model.link().fit().classes.size());
  if (streams) std::printf("; %.2f GB/s", row.stream_large * kBytesPerNs);
  std::printf("\n");
  model.check_sound();
  CHECK(model.regions() == 1);
  return row;
}

LinkOptions stock() {
  LinkOptions options;
  options.num_buffers = 2;
  options.frame_bytes = 4096;
  options.buffer_sizes = 8;
  options.max_outstanding = 32;
  return options;
}

}  // namespace

TEST(a_large_message_comes_within_a_tenth_of_the_cable) {
  std::printf("  %-24s %9s %9s %9s us, and of the limit\n", "num_buffers x frame_bytes", "6 KiB", "64 KiB", "12 MiB");
  const Row seeds = measure("8 x 64 KiB x 6, 256", {}, true);
  const Row small = measure("2 x 4 KiB x 8, 32", stock(), true);
  CHECK(seeds.of_limit_large >= 0.9 && seeds.stream_large >= 0.9);
  CHECK(seeds.of_limit_small >= 0.8 && seeds.of_limit_middle >= 0.6);
  CHECK(small.pool_bytes < seeds.pool_bytes);
  Row before{};
  for (const std::uint32_t count : {1U, 2U, 4U, 8U, 64U}) {
    LinkOptions options;
    options.num_buffers = count;
    const std::string name = "num_buffers " + std::to_string(count);
    const Row row = measure(name.c_str(), options, false);
    CHECK(row.pool_bytes > before.pool_bytes);
    before = row;
  }
  CHECK(before.of_limit_large >= 0.9);
}

CHECK_MAIN
