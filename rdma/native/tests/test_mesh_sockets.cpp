#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <functional>
#include <mutex>
#include <thread>

#include "core/mesh.h"
#include "tests/mesh_ranks.h"

using namespace mesh_test;

// What a network does to the connections of two ranks, over real sockets.
namespace {

// Joins two connections as a network does: forwards in both directions until it is told otherwise.
class Wire {
 public:
  Wire(pairs::Sockets left, pairs::Sockets right) : left_(left), right_(right), thread_([this] { forward(); }) {
    ::signal(SIGPIPE, SIG_IGN);
  }
  ~Wire() {
    over_ = true;
    thread_.join();
    ::close(left_.b);
    ::close(right_.b);
  }
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  [[nodiscard]] int left() const { return left_.a; }  // the ranks' ends
  [[nodiscard]] int right() const { return right_.a; }

  // From now on nothing passes, not even the end of a connection: what a pulled cable or a crashed machine looks like.
  void go_silent() { silent_ = true; }
  // Bytes that the right end gets before whatever the left one sends next.
  void inject(std::vector<std::byte> bytes) {
    std::lock_guard lock(mutex_);
    injected_ = std::move(bytes);
  }
  // Changes what the left end sends next.
  void alter(std::function<void(std::span<std::byte>)> change) {
    std::lock_guard lock(mutex_);
    change_ = std::move(change);
  }
  // Ends one direction: the left end gets no more, but may go on sending.
  void end_towards_left() { ::shutdown(left_.b, SHUT_WR); }

 private:
  void forward() {
    std::vector<std::byte> buffer(65536);
    pollfd ends[2] = {{left_.b, POLLIN, 0}, {right_.b, POLLIN, 0}};
    while (!over_) {
      // Silent, it reads nothing either: a machine that has crashed acknowledges nothing.
      if (::poll(ends, silent_ ? 0 : 2, 5) <= 0 || silent_) continue;
      for (int i : {0, 1}) {
        if ((ends[i].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
        int to = i == 0 ? right_.b : left_.b;
        ssize_t count = ::read(ends[i].fd, buffer.data(), buffer.size());
        if (count <= 0) {
          ::shutdown(to, SHUT_WR);
          ends[i].fd = -1;
          continue;
        }
        std::span<std::byte> bytes(buffer.data(), static_cast<std::size_t>(count));
        if (i == 0) {
          std::lock_guard lock(mutex_);
          if (!injected_.empty()) write_all(to, std::exchange(injected_, {}));
          if (change_) std::exchange(change_, nullptr)(bytes);
        }
        write_all(to, bytes);
      }
    }
  }

  static void write_all(int to, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      ssize_t count = ::write(to, bytes.data(), bytes.size());
      if (count <= 0) return;  // the rank has gone
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }

  pairs::Sockets left_;
  pairs::Sockets right_;
  std::atomic<bool> silent_{false};
  std::atomic<bool> over_{false};
  std::mutex mutex_;
  std::vector<std::byte> injected_;
  std::function<void(std::span<std::byte>)> change_;
  std::thread thread_;  // last: uses all of the above
};

// Two ranks whose link and side socket run over wires.
struct Wired {
  Wire link{pairs::tcp_sockets(), pairs::tcp_sockets()};
  Wire side{pairs::unix_sockets(), pairs::unix_sockets()};
  std::unique_ptr<Mesh> left;
  std::unique_ptr<Mesh> right;

  explicit Wired(double timeout_seconds = 20, bool checksum_payloads = false) {
    auto mesh = [&](int rank, int link_descriptor, int side_descriptor) {
      std::map<int, Mesh::Peer> peers;
      peers[1 - rank].point_to_point.push_back(tcp_link(link_descriptor, {}));
      peers[1 - rank].side_descriptor = side_descriptor;
      return std::make_unique<Mesh>(rank, 2, std::move(peers),
                                    Mesh::Settings{{1, 4, 2}, "test", timeout_seconds, 20, checksum_payloads});
    };
    left = mesh(0, link.left(), side.left());
    right = mesh(1, link.right(), side.right());
  }
};

}  // namespace

TEST(a_frame_of_an_older_epoch_on_an_open_link_is_an_error_on_both_sides) {
  Wired ranks;
  auto values = values_of(0, 8);
  std::vector<float> got(8);
  ranks.left->send(1, floats(8), in(values));
  ranks.right->receive(0, floats(8), out(got));
  CHECK(got == values);

  // Right in everything but the epoch: it is the message that is due.
  FrameHeader late;
  late.dtype = static_cast<std::uint8_t>(Dtype::kFloat32);
  late.epoch = {1, 4, 1};
  late.sequence = 1;
  late.message_bytes = 32;
  late.frame_bytes = 32;
  late.shape_hash = tag_of(floats(8).shape_hash, Operation::kMessage);
  late.source = 0;
  late.target = 1;
  std::vector<std::byte> bytes(kFrameHeaderBytes + 32);
  encode_header(late, std::span<std::byte, kFrameHeaderBytes>(bytes.data(), kFrameHeaderBytes));
  ranks.link.inject(bytes);
  ranks.left->send(1, floats(8), in(values));
  auto error = error_of([&] { ranks.right->receive(0, floats(8), out(got)); });
  CHECK_TEXT(has(error, "epoch 1.4.2") && has(error, "epoch 1.4.1"), error);
  CHECK(ranks.right->failure().status.code() == Code::kMismatch && ranks.right->failure().peer == 0);
  CHECK_TEXT(got == values, "nothing of it may arrive");
  error = error_of([&] { ranks.left->receive(1, floats(8), out(got)); });
  CHECK_TEXT(has(error, "rank 1 gave up") && has(error, "epoch 1.4.1"), error);
  error = error_of([&] { ranks.right->receive(0, floats(8), out(got)); });
  CHECK_TEXT(has(error, "the group has failed"), error);
}

TEST(a_bit_flipped_on_the_way_is_corrupt_where_payloads_are_checksummed) {
  for (bool checksums : {true, false}) {
    Wired ranks(20, checksums);
    auto values = values_of(0, 1000);
    std::vector<float> got(1000);
    ranks.link.alter([](std::span<std::byte> bytes) { bytes[kFrameHeaderBytes + 1] ^= std::byte{1}; });
    ranks.left->send(1, floats(1000), in(values));
    auto error = error_of([&] { ranks.right->receive(0, floats(1000), out(got)); });
    if (checksums) {
      CHECK_TEXT(has(error, "altered on its way"), error);
      CHECK(ranks.right->failure().status.code() == Code::kCorrupt);
    } else {
      CHECK_TEXT(error.empty() && got != values, error);
    }
  }
}

TEST(a_connection_whose_other_end_has_vanished_ends_at_the_deadline_and_names_the_peer) {
  for (bool sends : {false, true}) {
    Wired ranks(0.3);
    ranks.link.go_silent();
    ranks.side.go_silent();
    ranks.right.reset();  // this end learns nothing of it
    auto start = Clock::now();
    auto error = error_of([&] {
      std::vector<float> x(sends ? 8'000'000 : 4);  // more than the system's buffers take
      if (sends) {
        ranks.left->send(1, floats(x.size()), in(x));
      } else {
        ranks.left->receive(1, floats(x.size()), out(x));
      }
    });
    CHECK_TEXT(has(error, "rank 1") && has(error, "0.3 s"), error);
    CHECK(ranks.left->failure().status.code() == Code::kTimeout && ranks.left->failure().peer == 1);
    CHECK(milliseconds_since(start) < 10000);
  }
}

TEST(a_connection_that_is_ended_in_one_direction_is_a_loss_at_once) {
  Wired ranks;
  std::vector<float> x(4);
  ranks.link.end_towards_left();
  ranks.left->send(1, floats(4), in(x));  // this direction still works
  ranks.right->receive(0, floats(4), out(x));
  auto start = Clock::now();
  auto error = error_of([&] { ranks.left->receive(1, floats(4), out(x)); });
  CHECK(milliseconds_since(start) < 10000);
  CHECK_TEXT(has(error, "rank 1 has gone") && has(error, "closed the connection"), error);
  error = error_of([&] { ranks.right->receive(0, floats(4), out(x)); });
  CHECK_TEXT(has(error, "rank 0 gave up"), error);
}

CHECK_MAIN
