#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fakeverbs/segment.h"
#include "fakeverbs/waiter.h"
#include "verbs/abi.h"

// What one process holds of a fabric: each derives from the struct of the interface that its user sees. All of it
// belongs to the segment's lock.
namespace mm::fakeverbs {

namespace abi = mm::verbs::abi;

struct FakeDevice : abi::Device {
  std::shared_ptr<Mapped> mapped;
  std::uint32_t index = 0;
};

struct FakeRegion;

struct FakeContext : abi::Context {
  FakeDevice own;  // the list that the device came from may be freed
  std::unordered_map<std::uint32_t, FakeRegion*> regions;  // by key
};

struct FakeDomain : abi::Pd {
  FakeContext* owner = nullptr;
};

struct FakeRegion : abi::Mr {
  FakeContext* owner = nullptr;
  std::uint32_t record = kNone;
};

struct FakeChannel;
struct FakeQueuePair;

struct Finished {
  abi::Wc wc;
  std::uint64_t ready_at = 0;
  FakeQueuePair* pair = nullptr;  // null once it is destroyed
  std::uint32_t places = 0;
};

struct FakeQueue : abi::Cq {
  FakeContext* owner = nullptr;
  FakeChannel* waits_on = nullptr;
  std::deque<Finished> finished;
  std::vector<FakeQueuePair*> pairs;
  std::atomic<std::uint64_t> next_ready{kNever};  // of `finished`; read without the lock
  bool armed = false;
  bool overrun = false;
};

struct FakeChannel : abi::CompChannel {
  std::unique_ptr<Waiter> waiter;
  std::uint32_t number = 0;
  std::vector<FakeQueue*> queues;
  std::deque<FakeQueue*> events;
};

struct PostedSend {
  std::uint64_t id = 0;
  std::uint64_t address = 0;
  std::uint32_t bytes = 0;
  std::uint32_t key = 0;
  std::uint64_t earliest = 0;      // when it may begin
  std::uint32_t message = kNone;   // in flight, of a reliable pair
  std::uint64_t give_up_at = 0;    // of a reliable pair
  bool signaled = true;
  bool begun = false;
};

struct PostedReceive {
  std::uint64_t id = 0;
  std::uint64_t address = 0;
  std::uint32_t bytes = 0;
  std::uint32_t key = 0;
};

struct FakeQueuePair : abi::Qp {
  FakeContext* owner = nullptr;
  std::uint32_t record = kNone;
  abi::QpCap cap{};
  abi::QpAttr attr{};
  std::deque<PostedSend> sends;
  std::deque<PostedReceive> receives;
  std::uint32_t send_places = 0;  // taken: posted, or finished and not polled
  std::uint32_t receive_places = 0;
  std::uint64_t last_ready[2] = {0, 0};  // of sends, of receives: completions of one queue keep their order
};

[[nodiscard]] inline FakeContext& of(abi::Context* context) { return *static_cast<FakeContext*>(context); }
[[nodiscard]] inline FakeQueue& of(abi::Cq* queue) { return *static_cast<FakeQueue*>(queue); }
[[nodiscard]] inline FakeQueuePair& of(abi::Qp* pair) { return *static_cast<FakeQueuePair*>(pair); }
[[nodiscard]] inline FakeChannel& of(abi::CompChannel* channel) { return *static_cast<FakeChannel*>(channel); }

}  // namespace mm::fakeverbs
