#include "core/mesh.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <thread>

#include "tests/check.h"
#include "tests/fake_link.h"
#include "tests/link_pairs.h"

using namespace mm;

namespace {

using Maker = std::function<std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>>()>;

std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> fakes() {
  fake::Pair pair;
  return {std::move(pair.a), std::move(pair.b)};
}

Maker maker(const pairs::Kind& kind) {
  return [&kind] {
    auto pair = kind.make();
    return std::pair{std::move(pair.a), std::move(pair.b)};
  };
}

struct Options {
  Maker link = fakes;
  double timeout_seconds = 20;
  int links_per_lane = 1;
  std::vector<Epoch> epochs = {};
  bool collectives = true;
};

// A full mesh of ranks in this process; every rank is used by one thread.
struct Ranks {
  std::vector<std::map<int, Mesh::Peer>> peers;
  std::vector<std::unique_ptr<Mesh>> meshes;
  std::vector<int> raw_side;  // a duplicate of rank 0's side socket to rank 1

  explicit Ranks(int size, const Options& options = {}) : peers(static_cast<std::size_t>(size)) {
    for (int a = 0; a < size; ++a) {
      for (int b = a + 1; b < size; ++b) {
        auto& left = peers[static_cast<std::size_t>(a)][b];
        auto& right = peers[static_cast<std::size_t>(b)][a];
        for (int i = 0; i < options.links_per_lane; ++i) {
          auto [l, r] = options.link();
          left.point_to_point.push_back(std::move(l));
          right.point_to_point.push_back(std::move(r));
          if (!options.collectives) continue;
          auto [cl, cr] = options.link();
          left.collective.push_back(std::move(cl));
          right.collective.push_back(std::move(cr));
        }
        auto side = pairs::unix_sockets();
        left.side_descriptor = side.a;
        right.side_descriptor = side.b;
      }
    }
    for (int rank = 0; rank < size; ++rank) {
      auto r = static_cast<std::size_t>(rank);
      Epoch epoch = options.epochs.empty() ? Epoch{1, 4, 2} : options.epochs[r];
      meshes.push_back(std::make_unique<Mesh>(rank, size, std::move(peers[r]),
                                              Mesh::Settings{epoch, "test", options.timeout_seconds, 20}));
    }
  }

  Mesh& operator[](int rank) { return *meshes[static_cast<std::size_t>(rank)]; }

  // Runs `work(mesh)` in a thread for each rank; what each threw.
  std::vector<std::string> all(const std::function<void(Mesh&)>& work) {
    std::vector<std::string> errors(meshes.size());
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < meshes.size(); ++rank) {
      threads.emplace_back([&, rank] {
        try {
          work(*meshes[rank]);
        } catch (const MeshError& error) {
          errors[rank] = error.what();
        }
      });
    }
    for (auto& thread : threads) thread.join();
    return errors;
  }
};

Message floats(std::size_t count) {
  return {Dtype::kFloat32, static_cast<std::uint32_t>(count), "(" + std::to_string(count) + ",)"};
}
template <class T>
std::span<const std::byte> in(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}
template <class T>
std::span<std::byte> out(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}
std::vector<float> values_of(int rank, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(rank + 1) * 0.1f + static_cast<float>(i % 1000) * 1.7f;
  }
  return values;
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

template <class Work>
std::string error_of(Work work) {
  try {
    work();
  } catch (const MeshError& error) {
    return error.what();
  }
  return {};
}

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void check_collectives(Ranks& ranks, int size, std::size_t count) {
  std::vector<float> sum = values_of(0, count);
  std::vector<float> max = values_of(0, count);
  std::vector<float> gathered;
  for (int r = 0; r < size; ++r) {
    auto values = values_of(r, count);
    gathered.insert(gathered.end(), values.begin(), values.end());
    for (std::size_t i = 0; i < count && r > 0; ++i) {
      sum[i] += values[i];
      max[i] = std::max(max[i], values[i]);
    }
  }
  auto errors = ranks.all([&](Mesh& mesh) {
    auto mine = values_of(mesh.rank(), count);
    std::vector<float> result(count);
    mesh.all_reduce(Reduction::kSum, floats(count), in(mine), out(result));
    CHECK(result == sum);
    mesh.all_reduce(Reduction::kMax, floats(count), in(mine), out(result));
    CHECK(result == max);
    auto in_place = mine;
    mesh.all_reduce(Reduction::kSum, floats(count), in(in_place), out(in_place));
    CHECK(in_place == sum);
    std::vector<float> all(gathered.size());
    mesh.all_gather(floats(count), in(mine), out(all));
    CHECK(all == gathered);
    // Everybody's part is the sum's own.
    std::vector<float> many;
    for (int i = 0; i < size; ++i) many.insert(many.end(), mine.begin(), mine.end());
    std::fill(result.begin(), result.end(), 0.0f);
    mesh.sum_scatter(floats(many.size()), in(many), out(result));
    CHECK(result == sum);
  });
  for (const auto& error : errors) CHECK_TEXT(error.empty(), error);
}

}  // namespace

TEST(collectives_of_all_sizes_over_fakes) {
  for (int size : {2, 3, 4}) {
    Ranks ranks(size);
    for (std::size_t count : {0, 1, 2, 5, 8192, 8193, 65537, 300001}) check_collectives(ranks, size, count);
  }
}

TEST(collectives_over_every_kind_of_link) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    Ranks ranks(3, options);
    for (std::size_t count : {3, 9001, 40000}) check_collectives(ranks, 3, count);
  }
}

TEST(large_messages_are_cut_over_several_links) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    options.links_per_lane = 3;
    Ranks ranks(2, options);
    for (std::size_t count : {10, 65535, 65536, 200003}) {
      check_collectives(ranks, 2, count);
      auto errors = ranks.all([&](Mesh& mesh) {
        auto values = values_of(0, count);
        if (mesh.rank() == 0) {
          mesh.send(1, floats(count), in(values));
        } else {
          std::vector<float> got(count);
          mesh.receive(0, floats(count), out(got));
          CHECK(got == values);
        }
      });
      CHECK_TEXT(errors[0].empty() && errors[1].empty(), errors[0] + errors[1]);
    }
  }
}

TEST(any_to_any_both_ways_at_once) {
  Ranks ranks(3);
  auto errors = ranks.all([&](Mesh& mesh) {
    std::vector<std::thread> threads;
    for (int peer = 0; peer < 3; ++peer) {
      if (peer == mesh.rank()) continue;
      threads.emplace_back([&mesh, peer] {
        for (std::size_t i = 0; i < 200; ++i) {
          auto values = values_of(mesh.rank() * 10 + peer, i);
          mesh.send(peer, floats(i), in(values));
        }
      });
      threads.emplace_back([&mesh, peer] {
        for (std::size_t i = 0; i < 200; ++i) {
          std::vector<float> got(i);
          mesh.receive(peer, floats(i), out(got));
          CHECK(got == values_of(peer * 10 + mesh.rank(), i));
        }
      });
    }
    for (auto& thread : threads) thread.join();
  });
  for (const auto& error : errors) CHECK_TEXT(error.empty(), error);
}

TEST(a_mismatch_is_an_error_on_both_sides_and_for_ever) {
  Ranks ranks(3);
  auto errors = ranks.all([&](Mesh& mesh) {
    std::vector<float> x(mesh.rank() == 1 ? 6 : 5);
    mesh.all_reduce(Reduction::kSum, floats(x.size()), in(x), out(x));
  });
  for (int r = 0; r < 3; ++r) {
    const auto& error = errors[static_cast<std::size_t>(r)];
    CHECK_TEXT(has(error, "expected") && has(error, "(6,)") != has(error, "all_sum of (5,)"), error);
    CHECK(ranks[r].failure().status.code() == Code::kMismatch);
    auto start = Clock::now();
    std::vector<float> x(1);
    auto again = error_of([&] { ranks[r].all_gather(floats(1), in(x), out(x)); });
    CHECK_TEXT(has(again, "the group has failed"), again);
    again = error_of([&] { ranks[r].send((r + 1) % 3, floats(1), in(x)); });
    CHECK_TEXT(has(again, "the group has failed"), again);
    CHECK(milliseconds_since(start) < 1000);
  }
}

TEST(another_epoch_is_an_error_on_both_sides) {
  Options options;
  options.epochs = {{1, 4, 2}, {1, 4, 3}};
  Ranks ranks(2, options);
  auto errors = ranks.all([&](Mesh& mesh) {
    std::vector<float> x(2);
    if (mesh.rank() == 0) {
      mesh.send(1, floats(2), in(x));
      mesh.receive(1, floats(2), out(x));
    } else {
      mesh.receive(0, floats(2), out(x));
    }
  });
  for (const auto& error : errors) CHECK_TEXT(has(error, "epoch 1.4.2") && has(error, "epoch 1.4.3"), error);
}

TEST(faults_on_a_link_are_errors_on_both_sides) {
  using fake::Fault;
  for (Fault fault : {Fault::kCut, Fault::kDuplicate, Fault::kFlipHeader, Fault::kOversize, Fault::kOtherEpoch,
                      Fault::kOtherSource, Fault::kProbe, Fault::kEnd}) {
    Options options;
    options.link = [fault] {
      fake::Pair pair;
      pair.a_to_b->set_fault(1, fault);
      return std::pair{std::move(pair.a), std::move(pair.b)};
    };
    Ranks ranks(2, options);
    auto errors = ranks.all([&](Mesh& mesh) {
      std::vector<float> x(700);
      for (int i = 0; i < 3; ++i) mesh.all_reduce(Reduction::kSum, floats(700), in(x), out(x));
    });
    for (const auto& error : errors) CHECK_TEXT(!error.empty(), std::to_string(static_cast<int>(fault)));
    Code code = ranks[1].failure().status.code();
    Code wanted = Code::kMismatch;
    if (fault == Fault::kFlipHeader) wanted = Code::kCorrupt;
    if (fault == Fault::kCut || fault == Fault::kEnd) wanted = Code::kPeerLost;
    CHECK_TEXT(code == wanted, errors[1]);
    if (wanted != Code::kPeerLost) CHECK_TEXT(ranks[0].failure().status.code() == wanted, errors[0]);
  }
}

TEST(a_lost_frame_is_a_timeout_that_names_the_peer) {
  Options options;
  options.timeout_seconds = 0.2;
  options.link = [] {
    fake::Pair pair;
    pair.a_to_b->set_fault(0, fake::Fault::kLose);
    return std::pair{std::move(pair.a), std::move(pair.b)};
  };
  Ranks ranks(2, options);
  std::vector<float> x(4);
  ranks[0].send(1, floats(4), in(x));
  auto error = error_of([&] { ranks[1].receive(0, floats(4), out(x)); });
  CHECK_TEXT(has(error, "rank 0") && has(error, "0.2 s"), error);
  CHECK(ranks[1].failure().status.code() == Code::kTimeout && ranks[1].failure().peer == 0);
  // The other side learns of it, with the reason.
  error = error_of([&] {
    while (true) ranks[0].receive(1, floats(4), out(x));
  });
  CHECK_TEXT(has(error, "rank 1 gave up") && has(error, "deadline"), error);
}

TEST(abort_reaches_everyone_at_once) {
  Ranks ranks(3);
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ranks[2].abort("the user has left");
  });
  auto start = Clock::now();
  auto errors = ranks.all([&](Mesh& mesh) {
    if (mesh.rank() == 2) return;
    std::vector<float> x(4);
    mesh.all_reduce(Reduction::kSum, floats(4), in(x), out(x));
  });
  other.join();
  CHECK(milliseconds_since(start) < 2000);
  for (int r : {0, 1}) {
    CHECK_TEXT(has(errors[static_cast<std::size_t>(r)], "rank 2 gave up: the user has left"),
               errors[static_cast<std::size_t>(r)]);
    CHECK(ranks[r].failure().status.code() == Code::kPeerLost && ranks[r].failure().peer == 2);
  }
  CHECK(ranks[2].failure().status.code() == Code::kAborted);
}

TEST(a_reason_may_be_long_and_is_cut_between_characters) {
  Ranks ranks(2);
  std::string reason = "x";
  while (reason.size() < 10000) reason += "é";
  ranks[0].abort(reason);
  std::vector<float> x(1);
  auto error = error_of([&] { ranks[1].receive(0, floats(1), out(x)); });
  CHECK(ranks[1].failure().status.text().size() < 4100);
  CHECK(ranks[1].failure().status.text().size() > 3990);
  CHECK(static_cast<unsigned char>(ranks[1].failure().status.text().back()) == 0xA9);
}

TEST(a_farewell_while_nothing_is_under_way_is_no_failure) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    Ranks ranks(3, options);
    auto payload = values_of(0, 5);
    ranks[0].send(1, floats(5), in(payload));
    ranks[0].close();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(ranks[1].failure().status.ok() && ranks[2].failure().status.ok());
    // What it sent before still arrives; those that remain still talk.
    std::vector<float> got(5);
    auto error = error_of([&] { ranks[1].receive(0, floats(5), out(got)); });
    CHECK_TEXT(error.empty() && got == payload, std::string(kind.name) + error);
    ranks[1].send(2, floats(5), in(payload));
    ranks[2].receive(1, floats(5), out(got));
    // What needs it does not.
    error = error_of([&] { ranks[1].receive(0, floats(5), out(got)); });
    CHECK_TEXT(has(error, "rank 0 has closed the group"), std::string(kind.name) + error);
    error = error_of([&] { ranks[2].all_gather(floats(0), {}, {}); });
    CHECK_TEXT(has(error, "rank 0 has closed the group") || has(error, "rank 1 gave up"), error);
    error = error_of([&] { ranks[0].send(1, floats(5), in(payload)); });
    CHECK_TEXT(has(error, "closed on this rank"), error);
  }
}

TEST(a_send_after_a_farewell_fails) {
  Ranks ranks(2);
  ranks[0].close();
  std::vector<float> x(1);
  auto error = error_of([&] {
    while (true) {
      ranks[1].send(0, floats(1), in(x));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  CHECK_TEXT(has(error, "rank 0 has closed the group"), error);
}

TEST(closing_ends_an_operation_under_way_on_both_sides) {
  for (const auto& kind : pairs::kKinds) {
    Options options;
    options.link = maker(kind);
    Ranks ranks(2, options);
    std::thread closer([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ranks[0].close();
    });
    auto start = Clock::now();
    auto errors = ranks.all([&](Mesh& mesh) {
      std::vector<float> x(4);
      mesh.receive(1 - mesh.rank(), floats(4), out(x));
    });
    closer.join();
    CHECK(milliseconds_since(start) < 5000);
    CHECK_TEXT(has(errors[0], "closed on this rank"), errors[0]);
    CHECK_TEXT(has(errors[1], "rank 0 has closed the group"), std::string(kind.name) + errors[1]);
    ranks[0].close();
  }
}

TEST(a_death_ends_the_others_within_milliseconds) {
  Options options;
  Ranks ranks(2, options);
  // Rank 1's end of the side socket closes without a word, as the system does for the dead.
  auto side = pairs::unix_sockets();
  auto links = fakes();
  std::map<int, Mesh::Peer> peers;
  peers[1].point_to_point.push_back(std::move(links.first));
  peers[1].side_descriptor = side.a;
  Mesh mesh(0, 2, std::move(peers), {{1, 4, 2}, "test", 20, 20});
  Clock::time_point died;
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    died = Clock::now();
    ::close(side.b);
  });
  std::vector<float> x(1);
  auto error = error_of([&] { mesh.receive(1, floats(1), out(x)); });
  double took = milliseconds_since(died);
  killer.join();
  CHECK_TEXT(has(error, "rank 1 has gone"), error);
  CHECK_TEXT(took < 1000, std::to_string(took));
  std::printf("  %.2f ms from the death to the error\n", took);
  CHECK(mesh.failure().status.code() == Code::kPeerLost && mesh.failure().peer == 1);
}

TEST(garbage_on_a_side_socket_is_corrupt) {
  const std::string garbage[] = {std::string("\x07", 1), std::string("\x02\x00\x00\x00\x05\x00", 6),
                                 std::string("\x01\x01\xFF\xFF\xFF\xFF", 6), std::string("\x01\x00\x00\x00\x00\x00", 6),
                                 std::string("\x01\x63\x00\x00\x00\x00", 6), std::string("\x02\x00\x00\x00\x00\x00x", 7),
                                 std::string("GET / HTTP/1.1")};
  for (const auto& bytes : garbage) {
    auto side = pairs::unix_sockets();
    std::map<int, Mesh::Peer> peers;
    peers[1].side_descriptor = side.a;
    auto links = fakes();
    peers[1].point_to_point.push_back(std::move(links.first));
    Mesh mesh(0, 2, std::move(peers), {{1, 4, 2}, "test", 20, 20});
    CHECK(::send(side.b, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    std::vector<float> x(1);
    auto error = error_of([&] { mesh.receive(1, floats(1), out(x)); });
    CHECK_TEXT(mesh.failure().status.code() == Code::kCorrupt, error);
    ::close(side.b);
  }
}

TEST(wrong_calls_fail_alone) {
  Options options;
  options.collectives = false;
  Ranks ranks(2, options);
  std::vector<float> x(1);
  CHECK(has(error_of([&] { ranks[0].send(0, floats(1), in(x)); }), "itself"));
  CHECK(has(error_of([&] { ranks[0].send(5, floats(1), in(x)); }), "no link"));
  CHECK(has(error_of([&] { ranks[0].receive(-1, floats(1), out(x)); }), "no link"));
  CHECK(has(error_of([&] { ranks[0].all_reduce(Reduction::kSum, floats(1), in(x), out(x)); }), "without links"));
  CHECK(ranks[0].failure().status.ok());
  ranks[0].send(1, floats(1), in(x));
  ranks[1].receive(0, floats(1), out(x));
  bool refused = false;
  try {
    Mesh mesh(2, 2, {}, {});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

TEST(a_group_of_one_copies) {
  Mesh mesh(0, 1, {}, {});
  auto values = values_of(0, 100);
  std::vector<float> got(100);
  mesh.all_reduce(Reduction::kMin, floats(100), in(values), out(got));
  CHECK(got == values);
  std::fill(got.begin(), got.end(), 0.0f);
  mesh.all_gather(floats(100), in(values), out(got));
  CHECK(got == values);
  std::fill(got.begin(), got.end(), 0.0f);
  mesh.sum_scatter(floats(100), in(values), out(got));
  CHECK(got == values);
}

TEST(pools_are_counted) {
  Ranks ranks(3);
  CHECK(ranks[0].pool_bytes() == 4 * 100 + 2 * Mesh::kBlockBytes);
  ranks[0].close();
  CHECK(ranks[0].pool_bytes() == 0);
}

CHECK_MAIN
