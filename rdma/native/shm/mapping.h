#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "shm/layout.h"

namespace mm::shm {

// One direction's shared memory, mapped.
class Mapping {
 public:
  // Maps and checks that both sides mean the same layout: writes the stamp where it is zero, compares it where not.
  // Throws std::system_error where the memory cannot be mapped and std::invalid_argument where it is too small or of
  // another layout. Closes nothing.
  Mapping(int fd, const LinkOptions& options, const std::string& what);
  // Uses memory that the caller has mapped and keeps, with the same checks; so both sides can share one mapping, which
  // the sanitizers then watch.
  Mapping(std::byte* base, std::size_t bytes, const LinkOptions& options, const std::string& what);
  ~Mapping();
  Mapping(Mapping&& other) noexcept
      : layout_(other.layout_),
        base_(other.base_),
        control_(other.control_),
        owned_(std::exchange(other.owned_, false)) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  [[nodiscard]] Control& control() const { return *control_; }
  [[nodiscard]] std::byte* at(std::size_t offset) const { return base_ + offset; }
  [[nodiscard]] const Layout& layout() const { return layout_; }

 private:
  void check_size(std::uint64_t bytes, const std::string& what) const;
  void agree(const std::string& what);

  Layout layout_;
  std::byte* base_ = nullptr;
  Control* control_ = nullptr;
  bool owned_ = false;
};

}  // namespace mm::shm
