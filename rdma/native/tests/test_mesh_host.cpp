#include <sys/resource.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "core/mesh.h"
#include "tests/mesh_ranks.h"

using namespace mesh_test;

namespace {

using Arrays = std::vector<std::vector<std::byte>>;

std::vector<std::byte> pattern(std::size_t count, std::size_t seed) {
  std::vector<std::byte> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((i * 7 + seed) % 253);
  return bytes;
}

std::vector<OutgoingArray> outgoing(const Arrays& arrays) {
  std::vector<OutgoingArray> out;
  for (const auto& bytes : arrays) {
    out.push_back({{Dtype::kUint8, {1, static_cast<std::int32_t>(bytes.size())}}, bytes});
  }
  return out;
}

// Takes whatever comes.
Arrays receive_all(Mesh& mesh, int peer, double timeout_seconds = 20) {
  Arrays got;
  mesh.host_receive(
      peer,
      [&](const Label& label, std::vector<std::span<std::byte>>& into) {
        for (std::size_t size : label.sizes) got.emplace_back(size);
        for (auto& bytes : got) into.emplace_back(bytes);
        return Status();
      },
      timeout_seconds);
  return got;
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

const std::vector<std::vector<std::size_t>> kParcels = {
    {}, {0}, {1}, {6144}, {6144, 4, 0}, {32768}, {32769}, {20000, 20000, 0, 3}, {300'000, 1}, {2'000'000}};

}  // namespace

TEST(parcels_and_messages_of_all_sizes_over_every_kind_of_link) {
  for (const auto& kind : pairs::kKinds) {
    for (int links : {1, 3}) {
      Options options;
      options.link = maker(kind);
      options.links_per_lane = links;
      options.collectives = false;
      Ranks ranks(2, options);
      auto errors = ranks.all([&](Mesh& mesh) {
        for (std::size_t round = 0; round < kParcels.size(); ++round) {
          Arrays arrays;
          for (std::size_t size : kParcels[round]) arrays.push_back(pattern(size, round));
          if (mesh.rank() == 0) {
            mesh.host_send(1, outgoing(arrays), 20);
            mesh.host_send_message(1, pattern(round * round * 10'000, round), 20);
          } else {
            CHECK(receive_all(mesh, 0) == arrays);
            CHECK(mesh.host_receive_message(0, 20) == pattern(round * round * 10'000, round));
          }
        }
      });
      for (const auto& error : errors) CHECK_TEXT(error.empty(), error);
    }
  }
}

TEST(both_directions_run_in_threads_of_their_own_and_share_the_lane_with_sends) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    Ranks ranks(2, options);
    auto errors = ranks.all([&](Mesh& mesh) {
      const int peer = 1 - mesh.rank();
      std::thread sender([&] {
        for (std::size_t i = 0; i < 80; ++i) {
          auto values = values_of(mesh.rank(), i);
          mesh.host_send(peer, outgoing({pattern(i * 211, i)}), 20);
          mesh.send(peer, floats(i), in(values));
          mesh.host_send_message(peer, pattern(i, i), 20);
        }
      });
      for (std::size_t i = 0; i < 80; ++i) {
        CHECK(receive_all(mesh, peer) == Arrays{pattern(i * 211, i)});
        std::vector<float> got(i);
        mesh.receive(peer, floats(i), out(got));
        CHECK(got == values_of(peer, i));
        CHECK(mesh.host_receive_message(peer, 20) == pattern(i, i));
      }
      sender.join();
    });
    for (const auto& error : errors) CHECK_TEXT(error.empty(), error);
  }
}

TEST(another_kind_of_message_is_an_error_on_both_sides) {
  for (int way = 0; way < 4; ++way) {
    Ranks ranks(2);
    std::vector<float> x(2);
    auto wrong = [&] {
      switch (way) {
        case 0: ranks[0].host_send_message(1, pattern(3, 0), 20); (void)receive_all(ranks[1], 0); break;
        case 1: ranks[0].host_send(1, outgoing({pattern(3, 0)}), 20); (void)ranks[1].host_receive_message(0, 20); break;
        case 2: ranks[0].send(1, floats(2), in(x)); (void)receive_all(ranks[1], 0); break;
        case 3: ranks[0].host_send(1, outgoing({pattern(3, 0)}), 20); ranks[1].receive(0, floats(2), out(x)); break;
      }
    };
    auto error = error_of(wrong);
    CHECK_TEXT(has(error, "sent something else") && has(error, "host"), error);
    CHECK(ranks[1].failure().status.code() == Code::kMismatch);
    error = error_of([&] { (void)ranks[0].host_receive_message(1, 20); });
    CHECK_TEXT(has(error, "sent something else"), error);
    CHECK(ranks[0].failure().status.code() == Code::kMismatch);
  }
}

TEST(a_receiver_that_has_no_place_ends_the_group_and_says_why) {
  for (bool throws : {false, true}) {
    Ranks ranks(2);
    ranks[0].host_send(1, outgoing({pattern(3, 0)}), 20);
    auto error = error_of([&] {
      ranks[1].host_receive(
          0,
          [&](const Label&, std::vector<std::span<std::byte>>&) {
            if (throws) throw std::bad_alloc();
            return Status(Code::kMismatch, "expected two of them");
          },
          20);
    });
    CHECK_TEXT(has(error, throws ? "no memory for [(1, 3) uint8]" : "expected two of them"), error);
    error = error_of([&] { (void)ranks[0].host_receive_message(1, 20); });
    CHECK_TEXT(has(error, "rank 1 gave up"), error);
  }
}

TEST(a_size_beyond_the_most_is_refused_alone) {
  Ranks ranks(2);
  std::vector<std::byte> large(Mesh::kMostMessageBytes + 1);
  auto error = error_of([&] { ranks[0].host_send_message(1, large, 20); });
  CHECK_TEXT(has(error, "largest host message"), error);
  error = error_of([&] {
    ranks[0].host_send(1, std::vector<OutgoingArray>{{{Dtype::kFloat32, {2}}, large}}, 20);
  });
  CHECK_TEXT(has(error, "cannot be sent together"), error);
  ranks[0].host_send_message(1, pattern(5, 5), 20);
  CHECK(ranks[1].host_receive_message(0, 20) == pattern(5, 5));
}

TEST(a_wait_without_a_deadline_costs_nothing_and_ends_with_the_group) {
  for (const auto& kind : pairs::kKinds) {
    for (int end = 0; end < 3; ++end) {
      Options options;
      options.link = maker(kind);
      options.timeout_seconds = 0.05;  // not this wait's
      Ranks ranks(2, options);
      std::atomic<bool> waiting{false};
      std::string error;
      std::thread waiter([&] {
        waiting = true;
        error = error_of([&] { (void)ranks[0].host_receive_message(1, std::numeric_limits<double>::infinity()); });
      });
      while (!waiting) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const double before = cpu_seconds();
      std::this_thread::sleep_for(std::chrono::milliseconds(150));
      CHECK_TEXT(cpu_seconds() - before < 0.1, std::to_string(cpu_seconds() - before));
      if (end == 0) {
        // A second thread in the same direction is refused and harms nobody; the other direction is free.
        auto refused = error_of([&] { (void)ranks[0].host_receive_message(1, 10); });
        CHECK_TEXT(has(refused, "another thread"), refused);
        ranks[0].host_send_message(1, pattern(4, 4), 10);
        CHECK(ranks[1].host_receive_message(0, 10) == pattern(4, 4));
        ranks[0].abort("enough");
      } else if (end == 1) {
        ranks[1].close();
      } else {
        ranks[0].close();
      }
      waiter.join();
      CHECK_TEXT(has(error, end == 0 ? "enough" : end == 1 ? "rank 1 has closed" : "closed on this rank"), error);
    }
  }
}

TEST(a_deadline_is_the_calls_own) {
  Ranks ranks(2);
  auto start = Clock::now();
  auto error = error_of([&] { (void)ranks[0].host_receive_message(1, 0.1); });
  CHECK_TEXT(has(error, "0.1 s") && has(error, "rank 1"), error);
  CHECK(milliseconds_since(start) >= 100 && milliseconds_since(start) < 10000);
  CHECK(ranks[0].failure().status.code() == Code::kTimeout && ranks[0].failure().peer == 1);
}

CHECK_MAIN
