// The fake verbs library between processes: each is one host of the fabric.

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "tests/fake_fabric.h"
#include "verbs/abi.h"

using namespace fake_fabric;
namespace abi = mm::verbs::abi;

namespace {

// A child that runs one end, with a pipe in each direction for what a control lane does otherwise.
class Child {
 public:
  template <typename Work>
  explicit Child(Work work) {
    int down[2];
    int up[2];
    CHECK(::pipe(down) == 0 && ::pipe(up) == 0);
    std::fflush(nullptr);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::close(down[1]);
      ::close(up[0]);
      read_ = down[0];
      write_ = up[1];
      ::alarm(50);
      work(*this);
      std::_Exit(0);
    }
    ::close(down[0]);
    ::close(up[1]);
    read_ = up[0];
    write_ = down[1];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    kill_it();
    ::close(read_);
    ::close(write_);
  }

  template <typename Value>
  void put(const Value& value) const {
    CHECK(::write(write_, &value, sizeof value) == static_cast<ssize_t>(sizeof value));
  }
  template <typename Value>
  void get(Value& value) const {
    std::size_t done = 0;
    while (done < sizeof value) {
      const auto count = ::read(read_, reinterpret_cast<char*>(&value) + done, sizeof value - done);
      CHECK(count > 0);
      done += static_cast<std::size_t>(count);
    }
  }
  // Both sides come here before either goes on.
  void meet() const {
    char byte = 0;
    put(byte);
    get(byte);
  }
  void kill_it() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    CHECK(::waitpid(pid_, nullptr, 0) == pid_);
    pid_ = -1;
  }
  void wait_for_success() {
    int status = 0;
    CHECK(::waitpid(pid_, &status, 0) == pid_);
    pid_ = -1;
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }

 private:
  pid_t pid_ = -1;
  int read_ = -1;
  int write_ = -1;
};

struct HostEnd {
  HostEnd(Fabric& fabric, const char* host, const Child& other, const QueueShape& shape) {
    ::setenv("MACMESH_FAKEVERBS_HOST", host, 1);
    DeviceOptions options;
    options.events = mm::verbs::Choice::kYes;
    end = std::make_unique<End>(fabric, "fake0", shape, options);
    ::unsetenv("MACMESH_FAKEVERBS_HOST");
    const mm::verbs::Address own = end->pair->address();
    mm::verbs::Address peer;
    other.put(own);
    other.get(peer);
    must(end->pair->connect(peer));
  }
  // At least one completion, however long it takes.
  std::vector<Completion> wait() const {
    for (;;) {
      auto found = end->polled();
      if (!found.empty()) return found;
      if (!end->pair->arm()) continue;
      pollfd waiting{end->pair->wait_descriptor(), POLLIN, 0};
      CHECK(::poll(&waiting, 1, 40000) == 1);
    }
  }
  std::unique_ptr<End> end;
};

// Sends back every message that it gets, until one begins with a zero.
void echo(Fabric& fabric, const Child& parent, const QueueShape& shape) {
  HostEnd host(fabric, "b", parent, shape);
  for (std::uint64_t id = 0; id < 8; ++id) must(host.end->pair->post_receive(id, id * 65536, 65536));
  parent.meet();
  for (bool going = true; going;) {
    for (const Completion& completion : host.wait()) {
      CHECK(completion.ok);
      const std::size_t offset = completion.id * 65536;
      if (!completion.receive) continue;
      going = *host.end->at(offset) != std::byte{0};
      std::memcpy(host.end->at((std::size_t{1} << 20) + offset), host.end->at(offset), 65536);
      must(host.end->pair->post_receive(completion.id, offset, 65536));
      must(host.end->pair->post_send(completion.id, (std::size_t{1} << 20) + offset, 65536));
    }
  }
  parent.meet();
}

void talk(const std::string& plan, Mode mode) {
  Fabric fabric(plan);
  const QueueShape shape = shape_of(mode);
  Child child([&](const Child& parent) { echo(fabric, parent, shape); });
  HostEnd host(fabric, "a", child, shape);
  for (std::uint64_t id = 0; id < 8; ++id) must(host.end->pair->post_receive(id, id * 65536, 65536));
  child.meet();
  constexpr int kRounds = 200;
  for (int round = 0; round < kRounds; ++round) {
    const std::size_t offset = std::size_t{2} << 20;
    const bool last = round + 1 == kRounds;
    for (std::size_t i = 0; i < 65536; ++i) {
      *host.end->at(offset + i) = static_cast<std::byte>(1 + (i + static_cast<unsigned>(round)) % 255);
    }
    if (last) *host.end->at(offset) = std::byte{0};
    must(host.end->pair->post_send(99, offset, 65536));
    bool sent = false;
    bool received = false;
    while (!sent || !received) {
      for (const Completion& completion : host.wait()) {
        CHECK(completion.ok);
        if (!completion.receive) {
          sent = true;
          continue;
        }
        received = true;
        CHECK(std::memcmp(host.end->at(completion.id * 65536), host.end->at(offset), 65536) == 0);
        must(host.end->pair->post_receive(completion.id, completion.id * 65536, 65536));
      }
    }
  }
  child.meet();
  child.wait_for_success();
}

}  // namespace

TEST(two_processes_talk_over_unreliable_connections) {
  talk(kOneCable, Mode::kUC);
}

TEST(two_processes_talk_with_flow_control) {
  talk(std::string("flow_control=1;") + kOneCable, Mode::kUC);
}

TEST(two_processes_talk_over_reliable_connections) {
  talk(std::string("flavour=linux;latency_ns=10000;bytes_per_second=8000000000;") + kOneCable, Mode::kRC);
}

TEST(a_killed_peer_is_silence_to_an_unreliable_connection) {
  Fabric fabric(kOneCable);
  const QueueShape shape = shape_of(Mode::kUC);
  Child child([&](const Child& parent) { echo(fabric, parent, shape); });
  HostEnd host(fabric, "a", child, shape);
  must(host.end->pair->post_receive(1, 0, 65536));
  child.meet();
  child.kill_it();
  must(host.end->pair->post_send(2, 65536, 65536));
  const auto sent = host.wait();
  CHECK(sent.size() == 1 && sent[0].ok && !sent[0].receive);
  CHECK(host.end->polled().empty());
  CHECK(host.end->opened->port_active());
}

TEST(a_killed_peer_fails_a_reliable_connection) {
  Fabric fabric(std::string("flavour=linux;retry_ns=1000000;") + kOneCable);
  const QueueShape shape = shape_of(Mode::kRC);
  Child child([&](const Child& parent) { echo(fabric, parent, shape); });
  HostEnd host(fabric, "a", child, shape);
  child.meet();
  child.kill_it();
  must(host.end->pair->post_send(2, 65536, 65536));
  const auto sent = host.wait();
  CHECK(sent.size() == 1 && !sent[0].ok && sent[0].status == abi::kRetriesExceeded);
}

TEST(a_killed_process_gives_its_limits_back) {
  Fabric fabric(std::string("queue_pairs=1;regions=1;") + kOneCable);
  Child child([&](const Child& parent) {
    End end(fabric, "a_fake0", shape_of(Mode::kUC));
    parent.meet();
    parent.meet();  // never answered
  });
  child.meet();
  auto device = fabric.open("a_fake0");
  Pages pages(65536);
  Status why;
  CHECK(device->register_memory(pages.all(), why) == nullptr);
  child.kill_it();
  auto region = device->register_memory(pages.all(), why);
  CHECK_TEXT(region != nullptr, why.text());
  CHECK_TEXT(device->make_queue_pair(*region, shape_of(Mode::kUC), why) != nullptr, why.text());
}

TEST(a_process_killed_in_a_hurry_leaves_the_lock_to_the_others) {
  Fabric fabric(std::string("pool_bytes=1048576;") + kOneCable);
  for (int round = 0; round < 20; ++round) {
    const QueueShape shape = shape_of(Mode::kUC);
    Child child([&](const Child& parent) {
      HostEnd host(fabric, "b", parent, shape);
      parent.meet();
      for (;;) {  // until it is killed, most likely with the lock in its hands
        (void)host.end->pair->post_send(1, 0, 65536);
        (void)host.end->polled();
      }
    });
    HostEnd host(fabric, "a", child, shape);
    for (std::uint64_t id = 0; id < 4; ++id) must(host.end->pair->post_receive(id, 0, 65536));
    child.meet();
    (void)host.wait();
    child.kill_it();
    must(host.end->pair->post_send(2, 65536, 65536));
    for (bool sent = false; !sent;) {
      for (const Completion& completion : host.wait()) sent = sent || !completion.receive;
    }
  }
}

CHECK_MAIN
