#include "core/options.h"

#include <stdexcept>
#include <string>

#include "core/frame.h"

namespace mm {
namespace {

[[noreturn]] void refuse(const std::string& name, std::uint64_t value, const std::string& expected) {
  throw std::invalid_argument("link option " + name + " = " + std::to_string(value) + ": must be " + expected);
}

void check_range(const std::string& name, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value < least || value > most) {
    refuse(name, value, "from " + std::to_string(least) + " to " + std::to_string(most));
  }
}

}  // namespace

void LinkOptions::validate() const {
  check_range("num_buffers", num_buffers, 1, 4096);
  check_range("frame_bytes", frame_bytes, 64, kMaxFrameBytes);
  if (frame_bytes % 64 != 0) refuse("frame_bytes", frame_bytes, "a multiple of 64");
  check_range("buffer_sizes", buffer_sizes, 1, kMostBufferSizes);
  check_range("max_outstanding", max_outstanding, 1, 65536);
  if (largest_buffer_bytes() > kMaxFrameBytes) {
    refuse("buffer_sizes", buffer_sizes,
           "so small that the largest buffer, frame_bytes << (buffer_sizes - 1), is at most 1 GiB");
  }
  if (buffer_bytes() > kMostBufferBytes) {
    refuse("num_buffers", num_buffers, "so small that the buffers of one direction are at most 64 GiB");
  }
  if (!(spin_us >= 0.0 && spin_us <= 1e6)) {
    throw std::invalid_argument("link option spin_us = " + std::to_string(spin_us) + ": must be from 0 to 1,000,000");
  }
}

}  // namespace mm
