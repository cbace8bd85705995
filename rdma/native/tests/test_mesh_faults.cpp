#include "core/mesh.h"

#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "tests/mesh_ranks.h"

using namespace mesh_test;

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
    CHECK(milliseconds_since(start) < 10000);
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

TEST(an_altered_payload_is_corrupt_on_both_sides_where_payloads_are_checksummed) {
  for (bool checksums : {true, false}) {
    Options options;
    options.checksum_payloads = checksums;
    options.link = [] {
      fake::Pair pair;
      pair.a_to_b->set_fault(2, fake::Fault::kFlipPayload);
      return std::pair{std::move(pair.a), std::move(pair.b)};
    };
    Ranks ranks(2, options);
    auto values = values_of(0, 700);  // three frames
    std::vector<float> got(700);
    ranks[0].send(1, floats(700), in(values));
    auto error = error_of([&] { ranks[1].receive(0, floats(700), out(got)); });
    if (!checksums) {
      CHECK_TEXT(error.empty() && got != values, error);  // nothing else would have noticed
      continue;
    }
    CHECK_TEXT(has(error, "altered on its way") && has(error, "offset 2000"), error);
    CHECK(ranks[1].failure().status.code() == Code::kCorrupt && ranks[1].failure().peer == 0);
    error = error_of([&] { ranks[0].receive(1, floats(1), out(got)); });
    CHECK_TEXT(has(error, "rank 1 gave up") && has(error, "altered on its way"), error);
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
  CHECK(milliseconds_since(start) < 10000);
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
    CHECK(milliseconds_since(start) < 10000);
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
  Mesh mesh(0, 2, std::move(peers), {{1, 4, 2}, "test", 20, 20, false});
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
  CHECK_TEXT(took < 10000, std::to_string(took));
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
    Mesh mesh(0, 2, std::move(peers), {{1, 4, 2}, "test", 20, 20, false});
    CHECK(::send(side.b, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    std::vector<float> x(1);
    auto error = error_of([&] { mesh.receive(1, floats(1), out(x)); });
    CHECK_TEXT(mesh.failure().status.code() == Code::kCorrupt, error);
    ::close(side.b);
  }
}

CHECK_MAIN
