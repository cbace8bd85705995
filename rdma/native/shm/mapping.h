#pragma once

#include <string>

#include "shm/layout.h"

namespace mm::shm {

// One direction's shared memory, mapped.
class Mapping {
 public:
  // Maps and checks that both sides mean the same layout: writes the stamp where it is zero, compares it where not.
  // Throws std::system_error where the memory cannot be mapped and std::invalid_argument where it is too small or of
  // another layout. Closes nothing.
  Mapping(int fd, const LinkOptions& options, const std::string& what);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  [[nodiscard]] Control& control() const { return *control_; }
  [[nodiscard]] std::byte* at(std::size_t offset) const { return base_ + offset; }
  [[nodiscard]] const Layout& layout() const { return layout_; }

 private:
  Layout layout_;
  std::byte* base_ = nullptr;
  Control* control_ = nullptr;
};

}  // namespace mm::shm
