#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/frame.h"
#include "core/options.h"

namespace mm::shm {

// What one direction's shared memory holds: a control page, a ring of `max_outstanding` descriptors, and the buffers,
// class by class. Changing anything here needs a new kLayoutVersion.
//
// One side writes `published`, the other `consumed`; both only grow. The frame of number n has the descriptor n modulo
// `max_outstanding`. The buffers of a class are used in turn, so no list of free ones is shared.

inline constexpr std::uint32_t kMagic = 0x314D5353;  // "SSM1"
inline constexpr std::uint32_t kLayoutVersion = 1;
inline constexpr std::size_t kLineBytes = 128;  // a cache line of Apple silicon; two of others
inline constexpr std::size_t kPageBytes = 16384;

struct Control {
  alignas(kLineBytes) std::atomic<std::uint64_t> stamp;  // magic and version; written by the side that maps first
  std::atomic<std::uint64_t> digest;                     // of the options that decide the layout
  alignas(kLineBytes) std::atomic<std::uint64_t> published;          // frames; by the sender
  alignas(kLineBytes) std::atomic<std::uint64_t> consumed;           // frames; by the receiver
  alignas(kLineBytes) std::atomic<std::uint32_t> receiver_sleeping;  // it wants its doorbell rung
  alignas(kLineBytes) std::atomic<std::uint32_t> sender_sleeping;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free,
              "atomics with locks do not work between processes");
static_assert(sizeof(Control) <= kPageBytes);

struct alignas(kLineBytes) FrameSlot {
  std::byte header[kFrameHeaderBytes];
  std::uint32_t size_class;
  std::uint32_t slot;
};
static_assert(sizeof(FrameSlot) == kLineBytes);

// Where things lie in the memory of one direction.
class Layout {
 public:
  explicit Layout(const LinkOptions& options) : options_(options) {
    std::size_t at = kPageBytes;
    at += (options.max_outstanding * sizeof(FrameSlot) + kPageBytes - 1) / kPageBytes * kPageBytes;
    buffers_at_ = at;
    bytes_ = at + options.buffer_bytes();
  }

  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t descriptor_at(std::size_t index) const { return kPageBytes + index * sizeof(FrameSlot); }
  [[nodiscard]] std::size_t class_bytes(std::uint32_t size_class) const {
    return static_cast<std::size_t>(options_.frame_bytes) << size_class;
  }
  [[nodiscard]] std::size_t buffer_at(std::uint32_t size_class, std::uint32_t slot) const {
    const std::size_t below = (std::size_t{1} << size_class) - 1;  // all smaller classes, in frame_bytes
    return buffers_at_ + static_cast<std::size_t>(options_.num_buffers) * options_.frame_bytes * below +
           slot * class_bytes(size_class);
  }
  // Equal on both sides where the layouts are.
  [[nodiscard]] std::uint64_t digest() const {
    std::uint64_t hash = 14695981039346656037ULL;
    for (const std::uint64_t value :
         {std::uint64_t{options_.num_buffers}, std::uint64_t{options_.frame_bytes},
          std::uint64_t{options_.buffer_sizes}, std::uint64_t{options_.max_outstanding}, std::uint64_t{bytes_}}) {
      hash = (hash ^ value) * 1099511628211ULL;
    }
    return hash | 1;  // zero means: not written
  }
  [[nodiscard]] static std::uint64_t stamp() { return std::uint64_t{kMagic} << 32 | kLayoutVersion; }

 private:
  LinkOptions options_;
  std::size_t buffers_at_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace mm::shm
