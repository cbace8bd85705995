#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <string>

// A ring of byte messages in shared memory, for one producer and one consumer in two processes. Lock-free, and
// without any system call: whoever finds that the other side sleeps wakes it by other means (see doorbell.h).
//
// Memory: a Control, then `capacity` bytes of records. A record is a word (see below) and its payload, padded to
// whole words; it may wrap around the end, its word cannot. A message longer than a quarter of the ring is several
// records, all but the last of which say that more follows; so it passes a ring that is smaller than it.
//
// Neither side trusts the other. Each keeps its own position in its own memory and never reads it back, copies what
// it reads before it checks it, and calls the ring corrupt where a position or a record cannot be.
namespace mm::spsc {

inline constexpr std::uint64_t kMagic = 0x474e'4952'4d43'414dULL;  // "MACMRING"
inline constexpr std::uint32_t kLayoutVersion = 1;
inline constexpr std::size_t kLineBytes = 128;  // of Apple silicon; x86 fetches pairs of 64
inline constexpr std::size_t kWordBytes = 8;
inline constexpr std::size_t kLeastCapacity = 256;
inline constexpr std::size_t kMostCapacity = std::size_t{1} << 30;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free,
              "an atomic with a lock does not work between processes");

struct Control {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t line_bytes;
  std::uint64_t capacity;
  std::atomic<std::uint32_t> producer_attached;
  std::atomic<std::uint32_t> consumer_attached;
  alignas(kLineBytes) std::atomic<std::uint64_t> produced;    // bytes ever written; by the producer
  std::atomic<std::uint32_t> ended;                           // 1: it says goodbye; nothing comes after `produced`
  alignas(kLineBytes) std::atomic<std::uint64_t> consumed;    // bytes ever read; by the consumer
  alignas(kLineBytes) std::atomic<std::uint32_t> consumer_sleeps;   // set by the consumer, taken by the producer
  alignas(kLineBytes) std::atomic<std::uint32_t> producer_sleeps;   // set by the producer, taken by the consumer
};
static_assert(sizeof(Control) == 5 * kLineBytes);

// Bytes of shared memory of a ring.
constexpr std::size_t memory_bytes(std::size_t capacity) { return sizeof(Control) + capacity; }

enum class Result : std::uint8_t {
  kDone,     // a message (or a record of one) went through
  kWait,     // no space, or nothing there
  kCorrupt,  // the other side's values cannot be
};

// The word before each payload: 32 bits of length, 16 of flags, 16 of the record's number.
struct Record {
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t number = 0;

  static constexpr std::uint16_t kMore = 1;

  [[nodiscard]] std::uint64_t word() const {
    return std::uint64_t{length} | std::uint64_t{flags} << 32 | std::uint64_t{number} << 48;
  }
  static Record of(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word), static_cast<std::uint16_t>(word >> 32),
            static_cast<std::uint16_t>(word >> 48)};
  }
};

constexpr std::size_t padded(std::size_t bytes) { return (bytes + kWordBytes - 1) & ~(kWordBytes - 1); }

// Throws std::invalid_argument where a ring cannot have that capacity.
inline void require_capacity(std::uint64_t capacity) {
  if (!std::has_single_bit(capacity) || capacity < kLeastCapacity || capacity > kMostCapacity) {
    throw std::invalid_argument("the capacity of a ring must be a power of two from " +
                                std::to_string(kLeastCapacity) + " to " + std::to_string(kMostCapacity) +
                                " bytes, not " + std::to_string(capacity));
  }
}

// Makes an empty ring of the memory. Before anybody attaches.
inline void format(std::span<std::byte> memory, std::size_t capacity) {
  require_capacity(capacity);
  if (memory.size() < memory_bytes(capacity)) {
    throw std::invalid_argument("a ring of " + std::to_string(capacity) + " bytes needs " +
                                std::to_string(memory_bytes(capacity)) + " bytes of memory, not " +
                                std::to_string(memory.size()));
  }
  auto* control = new (memory.data()) Control{};
  control->magic = kMagic;
  control->version = kLayoutVersion;
  control->line_bytes = kLineBytes;
  control->capacity = capacity;
}

// What both ends share: the checked layout, and access to the records.
class End {
 public:
  [[nodiscard]] std::size_t capacity() const { return capacity_; }
  [[nodiscard]] std::size_t largest_record_payload() const { return capacity_ / 4 - kWordBytes; }

 protected:
  explicit End(std::span<std::byte> memory) {
    if (memory.size() < sizeof(Control)) throw std::runtime_error("the memory is too small to hold a ring");
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % kLineBytes != 0) {
      throw std::runtime_error("the memory of a ring must begin at a cache line");
    }
    control_ = std::launder(reinterpret_cast<Control*>(memory.data()));
    if (control_->magic != kMagic) throw std::runtime_error("the memory holds no ring");
    if (control_->version != kLayoutVersion || control_->line_bytes != kLineBytes) {
      throw std::runtime_error("the ring has layout " + std::to_string(control_->version) + ", this build needs " +
                               std::to_string(kLayoutVersion) + "; daemon and worker must be of one build");
    }
    const std::uint64_t capacity = *static_cast<const volatile std::uint64_t*>(&control_->capacity);
    try {
      require_capacity(capacity);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(error.what());
    }
    if (memory.size() < memory_bytes(capacity)) {
      throw std::runtime_error("the memory of " + std::to_string(memory.size()) + " bytes is too small for a ring of " +
                               std::to_string(capacity));
    }
    capacity_ = capacity;
    data_ = memory.data() + sizeof(Control);
  }

  static void take_seat(std::atomic<std::uint32_t>& seat, const char* who) {
    if (seat.exchange(1) != 0) throw std::runtime_error(std::string("the ring already has a ") + who);
  }

  [[nodiscard]] std::byte* at(std::uint64_t position) const { return data_ + (position & (capacity_ - 1)); }
  [[nodiscard]] std::size_t to_edge(std::uint64_t position) const {
    return capacity_ - (position & (capacity_ - 1));
  }

  Control* control_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t capacity_ = 0;
};

class Producer : public End {
 public:
  // Throws std::runtime_error where the memory holds no ring of this layout, or one that is in use.
  explicit Producer(std::span<std::byte> memory) : End(memory) { take_seat(control_->producer_attached, "producer"); }

  // Writes the message from `written` on, as far as there is space, and moves `written`. kDone: all of it.
  Result write(std::span<const std::byte> message, std::size_t& written) {
    for (;;) {
      const std::size_t length = next_length(message.size() - written);
      std::size_t free = 0;
      if (!free_bytes(free)) return Result::kCorrupt;
      if (free < kWordBytes + padded(length)) return Result::kWait;
      const bool more = written + length < message.size();
      const Record record{static_cast<std::uint32_t>(length), more ? Record::kMore : std::uint16_t{0}, number_++};
      const std::uint64_t word = record.word();
      std::memcpy(at(produced_), &word, kWordBytes);
      copy_in(produced_ + kWordBytes, message.subspan(written, length));
      produced_ += kWordBytes + padded(length);
      control_->produced.store(produced_);
      written += length;
      if (!more) return Result::kDone;
    }
  }

  // Whether the consumer sleeps and nobody has woken it yet: if so the caller must. Call after each write.
  [[nodiscard]] bool must_wake() {
    return control_->consumer_sleeps.load() != 0 && control_->consumer_sleeps.exchange(0) != 0;
  }

  // Says that this side is about to sleep until there is space for the next record of a message with that many bytes
  // to go. False: there is space now, so go on. No wake-up is lost between the look and the sleep.
  [[nodiscard]] Result sleep(std::size_t left) {
    control_->producer_sleeps.store(1);
    std::size_t free = 0;
    if (!free_bytes(free)) return Result::kCorrupt;
    if (free < kWordBytes + padded(next_length(left))) return Result::kWait;
    control_->producer_sleeps.store(0);
    return Result::kDone;
  }

  // Says goodbye: what was written is all.
  void end() { control_->ended.store(1); }

 private:
  [[nodiscard]] std::size_t next_length(std::size_t left) const {
    return left < largest_record_payload() ? left : largest_record_payload();
  }

  [[nodiscard]] bool free_bytes(std::size_t& free) {
    const std::uint64_t consumed = control_->consumed.load();
    // Unsigned distances: a position that ran backwards or ahead of ours is far from both.
    if (consumed - seen_consumed_ > produced_ - seen_consumed_ || consumed % kWordBytes != 0) return false;
    seen_consumed_ = consumed;
    free = capacity_ - (produced_ - consumed);
    return true;
  }

  void copy_in(std::uint64_t position, std::span<const std::byte> bytes) {
    const std::size_t first = bytes.size() < to_edge(position) ? bytes.size() : to_edge(position);
    if (first > 0) std::memcpy(at(position), bytes.data(), first);
    if (bytes.size() > first) std::memcpy(data_, bytes.data() + first, bytes.size() - first);
  }

  std::uint64_t produced_ = 0;
  std::uint64_t seen_consumed_ = 0;
  std::uint16_t number_ = 0;
};

class Consumer : public End {
 public:
  // The payload of a record, in two parts where it wraps around. The producer may still write to it if it is hostile.
  struct Piece {
    std::span<const std::byte> first;
    std::span<const std::byte> second;
    bool more = false;

    [[nodiscard]] std::size_t size() const { return first.size() + second.size(); }
  };

  // Throws as Producer's.
  explicit Consumer(std::span<std::byte> memory) : End(memory) { take_seat(control_->consumer_attached, "consumer"); }

  // The oldest record; kDone where there is one. The same again until `release`.
  [[nodiscard]] Result peek(Piece& piece) {
    const std::uint64_t produced = control_->produced.load();
    const std::uint64_t there = produced - consumed_;
    if (produced - seen_produced_ > consumed_ + capacity_ - seen_produced_ || there % kWordBytes != 0) {
      return Result::kCorrupt;
    }
    seen_produced_ = produced;
    if (there == 0) return Result::kWait;
    // Once, by volatile: what is checked must be what is used.
    const auto word = *reinterpret_cast<const volatile std::uint64_t*>(at(consumed_));
    const Record record = Record::of(word);
    if (record.length > largest_record_payload() || kWordBytes + padded(record.length) > there ||
        (record.flags & ~Record::kMore) != 0 || record.number != number_) {
      return Result::kCorrupt;
    }
    piece.more = (record.flags & Record::kMore) != 0;
    if (piece.more && record.length == 0) return Result::kCorrupt;
    const std::uint64_t payload = consumed_ + kWordBytes;
    const std::size_t first = record.length < to_edge(payload) ? record.length : to_edge(payload);
    piece.first = {at(payload), first};
    piece.second = {data_, record.length - first};
    peeked_ = kWordBytes + padded(record.length);
    return Result::kDone;
  }

  // Gives the space of the record last peeked back.
  void release() {
    consumed_ += peeked_;
    peeked_ = 0;
    ++number_;
    control_->consumed.store(consumed_);
  }

  // Whether the producer sleeps for space and the ring is half empty: if so the caller must wake it. Call after each
  // release. Half empty is enough for any record, and a producer that is woken for each would be woken too often.
  [[nodiscard]] bool must_wake() {
    return control_->producer_sleeps.load() != 0 && control_->produced.load() - consumed_ <= capacity_ / 2 &&
           control_->producer_sleeps.exchange(0) != 0;
  }

  // Says that this side is about to sleep until something comes. kDone: something has come, so go on.
  [[nodiscard]] Result sleep() {
    control_->consumer_sleeps.store(1);
    const std::uint64_t produced = control_->produced.load();
    if (produced == consumed_) return Result::kWait;
    control_->consumer_sleeps.store(0);
    return Result::kDone;
  }

  // Whether the producer has said goodbye. Look before the last `peek`: what it wrote before is there then.
  [[nodiscard]] bool ended() const { return control_->ended.load() != 0; }

 private:
  std::uint64_t consumed_ = 0;
  std::uint64_t seen_produced_ = 0;
  std::size_t peeked_ = 0;
  std::uint16_t number_ = 0;
};

}  // namespace mm::spsc
