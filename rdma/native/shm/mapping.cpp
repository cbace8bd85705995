#include "shm/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace mm::shm {
namespace {

// The value that is there after it was offered: ours where there was none.
std::uint64_t settle(std::atomic<std::uint64_t>& field, std::uint64_t ours) {
  std::uint64_t there = 0;
  return field.compare_exchange_strong(there, ours) ? ours : there;
}

}  // namespace

Mapping::Mapping(int fd, const LinkOptions& options, const std::string& what) : layout_(options) {
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) {
    throw std::system_error(errno, std::generic_category(), what + ": descriptor " + std::to_string(fd));
  }
  check_size(facts.st_size < 0 ? 0 : static_cast<std::uint64_t>(facts.st_size), what);
  void* mapped = ::mmap(nullptr, layout_.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), what + ": mmap");
  base_ = static_cast<std::byte*>(mapped);
  try {
    agree(what);
  } catch (...) {
    ::munmap(base_, layout_.bytes());
    throw;
  }
  owned_ = true;
}

Mapping::Mapping(std::byte* base, std::size_t bytes, const LinkOptions& options, const std::string& what)
    : layout_(options), base_(base) {
  check_size(bytes, what);
  agree(what);
}

Mapping::~Mapping() {
  if (owned_) ::munmap(base_, layout_.bytes());
}

void Mapping::check_size(std::uint64_t bytes, const std::string& what) const {
  // Touching what lies behind the end of the object would be SIGBUS.
  if (bytes < layout_.bytes()) {
    throw std::invalid_argument(what + ": " + std::to_string(bytes) + " bytes, but these options need " +
                                std::to_string(layout_.bytes()));
  }
}

void Mapping::agree(const std::string& what) {
  // Zeroed memory is a valid Control: lock-free atomics have no other state.
  control_ = reinterpret_cast<Control*>(base_);
  const std::uint64_t stamp = settle(control_->stamp, Layout::stamp());
  if (stamp >> 32 != kMagic) throw std::invalid_argument(what + ": holds something else than a link's memory");
  if (stamp != Layout::stamp()) {
    throw std::invalid_argument(what + ": layout version " + std::to_string(static_cast<std::uint32_t>(stamp)) +
                                ", expected " + std::to_string(kLayoutVersion));
  }
  if (settle(control_->digest, layout_.digest()) != layout_.digest()) {
    throw std::invalid_argument(what + ": the peer has other link options");
  }
}

}  // namespace mm::shm
