#pragma once

#include <cstddef>
#include <cstdint>

namespace mm {

// The knobs of the link providers; see docs/transport.md for what each costs.
struct LinkOptions {
  static constexpr std::uint32_t kMostBufferSizes = 16;
  static constexpr std::uint64_t kMostBufferBytes = std::uint64_t{64} << 30;

  std::uint32_t num_buffers = 8;       // buffers of each size class, per direction; all may be in flight
  std::uint32_t frame_bytes = 65536;   // bytes of a buffer of the smallest class
  std::uint32_t buffer_sizes = 6;      // size classes: frame_bytes, twice that, ...
  std::uint32_t max_outstanding = 256; // frames in flight per direction
  double spin_us = 100.0;              // how long a wait spins before it blocks

  // Payload bytes of the buffers of one direction: num_buffers * frame_bytes * (2^buffer_sizes - 1).
  [[nodiscard]] std::size_t buffer_bytes() const {
    return static_cast<std::size_t>(num_buffers) * frame_bytes * ((std::size_t{1} << buffer_sizes) - 1);
  }
  // Bytes of a buffer of the largest class.
  [[nodiscard]] std::size_t largest_buffer_bytes() const {
    return static_cast<std::size_t>(frame_bytes) << (buffer_sizes - 1);
  }

  // Throws std::invalid_argument that names the option and what it may be.
  void validate() const;
};

}  // namespace mm
