#pragma once

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <span>
#include <system_error>

namespace mm::spsc {

// A descriptor's memory, shared, for as long as this lives. The descriptor may be closed at once.
class Mapping {
 public:
  // Throws std::system_error.
  explicit Mapping(int descriptor) {
    struct stat about {};
    if (::fstat(descriptor, &about) != 0) throw std::system_error(errno, std::generic_category(), "fstat");
    bytes_ = static_cast<std::size_t>(about.st_size);
    void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    memory_ = static_cast<std::byte*>(memory);
  }
  ~Mapping() { ::munmap(memory_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  [[nodiscard]] std::span<std::byte> span() const { return {memory_, bytes_}; }

 private:
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace mm::spsc
