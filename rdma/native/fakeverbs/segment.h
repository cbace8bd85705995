#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "fakeverbs/settings.h"

// The memory that all processes of a fabric share: devices, cables, queue pairs and the messages in flight. Everything
// is reached by index, because it lies elsewhere in each process, and under one lock that outlives a killed owner.
namespace mm::fakeverbs {

inline constexpr std::uint32_t kNone = ~std::uint32_t{0};
inline constexpr std::uint64_t kNever = ~std::uint64_t{0};
inline constexpr std::uint32_t kMostDevices = 64;
inline constexpr std::uint32_t kMostCables = 32;
inline constexpr std::uint32_t kMostQueuePairs = 512;  // a power of two: a queue pair's number holds its index
inline constexpr std::uint32_t kMostRegions = 4096;
inline constexpr std::uint32_t kMostMessages = 16384;
inline constexpr std::uint32_t kBlockBytes = 16384;

struct DeviceRecord {
  char host[32];
  char name[32];
  std::uint32_t cable;  // kNone: no cable
  std::uint32_t end;    // which end of it
};

// Of the messages that one end sends.
struct Counters {
  std::uint64_t messages;    // begun
  std::uint64_t bytes;       // of them
  std::uint64_t delivered;   // into a receive
  std::uint64_t lost;        // by the chosen share, a command, or a cut
  std::uint64_t no_receive;  // dropped because none was posted, or nobody was there
  std::uint64_t corrupted;
  std::uint64_t torn;
  std::uint64_t length_errors;
};

struct Direction {
  std::uint64_t free_at;    // when the last message has left
  std::uint64_t sequence;   // number of the next message
  std::uint64_t lose_next;  // so many of the next messages are lost
  Counters counters;
};

struct CableRecord {
  std::uint32_t devices[2];
  bool up;
  std::uint64_t cut_at;  // of the last cut; kNever: there was none
  Direction from[2];
};

struct QueuePairRecord {
  bool used;
  std::int32_t pid;
  std::uint32_t device;
  std::uint32_t number;
  std::uint32_t type;
  std::uint32_t state;
  std::uint32_t remote_number;
  std::uint8_t remote_gid[16];
  std::uint32_t receive_sequence;
  std::uint32_t send_sequence;
  std::uint32_t receives;     // posted, not met
  std::uint32_t inbox_first;  // messages on their way to it, in order
  std::uint32_t inbox_last;
  std::uint32_t inbox_count;
  // The fabric's time at which its owner has something to do; read without the lock.
  std::atomic<std::uint64_t> attention;
  // Its owner waits on this channel.
  bool armed;
  std::uint32_t channel;
};

enum class MessageState : std::uint8_t { kFlying, kTaken, kRefused, kAbandoned };

struct Message {
  std::uint32_t next;
  std::uint32_t cable;
  std::uint32_t end;  // that sent it
  std::uint32_t sender;
  std::uint32_t sender_number;
  std::uint32_t packet_sequence;
  bool reliable;
  bool torn;
  bool fails;
  std::uint8_t not_ready_retries;  // that its sender allows; 7: for ever
  MessageState state;
  std::uint32_t refusal;  // completion status
  std::uint32_t bytes;
  std::uint32_t first_block;
  std::uint64_t begun_at;
  std::uint64_t arrives_at;
  std::uint64_t answered_at;
};

struct RegionRecord {
  bool used;
  std::int32_t pid;
  std::uint32_t device;
};

struct Segment {
  std::uint64_t magic;
  std::uint32_t layout;
  std::atomic<std::uint32_t> ready;
  std::uint64_t bytes;
  std::uint64_t blocks_offset;
  pthread_mutex_t lock;
  std::int64_t epoch_ns;
  std::atomic<std::uint64_t> manual_ns;
  Settings settings;
  std::uint32_t devices_count;
  std::uint32_t cables_count;
  std::uint32_t generation;      // of queue pair numbers
  std::uint32_t blocks_count;
  std::uint32_t free_block;      // chained through block_next
  std::uint32_t free_blocks;
  std::uint32_t free_message;    // chained through next
  bool pool_wanted;              // a send waits for room in the pool
  DeviceRecord devices[kMostDevices];
  CableRecord cables[kMostCables];
  QueuePairRecord queue_pairs[kMostQueuePairs];
  RegionRecord regions[kMostRegions];
  Message messages[kMostMessages];

  // Which block follows each: behind this struct, one per block.
  std::uint32_t* block_next() { return reinterpret_cast<std::uint32_t*>(this + 1); }
};

// A mapped segment.
class Mapped {
 public:
  // Makes a new one. Throws std::runtime_error where the name is taken, std::invalid_argument for a wrong plan.
  static void create(const std::string& name, const Plan& plan);
  // Throws std::runtime_error where there is none of that name, or it is of another layout.
  explicit Mapped(const std::string& name);
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  ~Mapped();

  [[nodiscard]] Segment& segment() const { return *segment_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::byte* block(std::uint32_t index) const {
    return reinterpret_cast<std::byte*>(segment_) + segment_->blocks_offset + std::size_t{index} * kBlockBytes;
  }

 private:
  std::string name_;
  Segment* segment_ = nullptr;
  std::size_t bytes_ = 0;
};

// Holds the segment's lock. A process that was killed while it held it leaves it to the next one.
class Locked {
 public:
  explicit Locked(Segment& segment);
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
  ~Locked();

 private:
  Segment& segment_;
};

// The fabric's time, in nanoseconds since it was made.
[[nodiscard]] std::uint64_t fabric_now(const Segment& segment);

// Whether a process runs: one that has ended and waits for its parent does not.
[[nodiscard]] bool process_lives(std::int32_t pid);

}  // namespace mm::fakeverbs
