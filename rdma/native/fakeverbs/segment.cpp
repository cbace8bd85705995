#include "fakeverbs/segment.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <system_error>

namespace mm::fakeverbs {
namespace {

constexpr std::uint64_t kMagic = 0x6d6d66616b657662;
constexpr std::uint32_t kLayout = 1;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("fake verbs: " + what + ": " + std::generic_category().message(errno));
}

std::int64_t machine_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

std::string path_of(const std::string& name) {
  return name.front() == '/' ? name : "/" + name;
}

std::uint32_t add_device(Segment& segment, const Plug& plug) {
  for (std::uint32_t i = 0; i < segment.devices_count; ++i) {
    if (plug.host == segment.devices[i].host && plug.device == segment.devices[i].name) {
      throw std::invalid_argument("fake verbs: " + plug.host + "." + plug.device + " is named twice");
    }
  }
  if (segment.devices_count == kMostDevices) throw std::invalid_argument("fake verbs: too many devices");
  DeviceRecord& device = segment.devices[segment.devices_count];
  std::snprintf(device.host, sizeof device.host, "%s", plug.host.c_str());
  std::snprintf(device.name, sizeof device.name, "%s", plug.device.c_str());
  device.cable = kNone;
  return segment.devices_count++;
}

void lay_cables(Segment& segment, const Plan& plan) {
  if (plan.cables.size() > kMostCables) throw std::invalid_argument("fake verbs: too many cables");
  for (const Cable& planned : plan.cables) {
    const std::uint32_t index = segment.cables_count++;
    CableRecord& cable = segment.cables[index];
    cable.up = true;
    cable.cut_at = kNever;
    for (std::uint32_t end = 0; end < 2; ++end) {
      cable.devices[end] = add_device(segment, planned.ends[end]);
      segment.devices[cable.devices[end]].cable = index;
      segment.devices[cable.devices[end]].end = end;
    }
  }
  for (const Plug& plug : plan.loose) add_device(segment, plug);
}

void make_lock(pthread_mutex_t& lock) {
  pthread_mutexattr_t attributes;
  ::pthread_mutexattr_init(&attributes);
  ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
#if defined(__linux__)
  ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
#endif
  ::pthread_mutex_init(&lock, &attributes);
  ::pthread_mutexattr_destroy(&attributes);
}

std::uint64_t rounded(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// New memory of a shared object is zero; only what is not zero is set.
void fill(Segment& segment, const Plan& plan, std::uint64_t bytes, std::uint64_t offset, std::uint32_t blocks) {
  segment.magic = kMagic;
  segment.layout = kLayout;
  segment.bytes = bytes;
  segment.blocks_offset = offset;
  segment.epoch_ns = machine_now();
  segment.settings = plan.settings;
  segment.blocks_count = segment.free_blocks = blocks;
  for (std::uint32_t i = 0; i < blocks; ++i) segment.block_next()[i] = i + 1 < blocks ? i + 1 : kNone;
  segment.free_block = blocks > 0 ? 0 : kNone;
  for (std::uint32_t i = 0; i < kMostMessages; ++i) segment.messages[i].next = i + 1 < kMostMessages ? i + 1 : kNone;
  make_lock(segment.lock);
  lay_cables(segment, plan);
}

}  // namespace

void Mapped::create(const std::string& name, const Plan& plan) {
  if (name.empty()) throw std::invalid_argument("fake verbs: the segment needs a name");
  const auto blocks = static_cast<std::uint32_t>(rounded(plan.settings.pool_bytes, kBlockBytes) / kBlockBytes);
  const std::uint64_t offset = rounded(sizeof(Segment) + std::uint64_t{blocks} * sizeof(std::uint32_t), 65536);
  const std::uint64_t bytes = offset + std::uint64_t{blocks} * kBlockBytes;
  const std::string path = path_of(name);
  const int fd = ::shm_open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (fd < 0) fail("making the segment " + name);
  void* memory = MAP_FAILED;
  if (::ftruncate(fd, static_cast<off_t>(bytes)) == 0) {
    memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  const int error = errno;
  ::close(fd);
  if (memory == MAP_FAILED) {
    ::shm_unlink(path.c_str());
    errno = error;
    fail("mapping the segment " + name);
  }
  auto* segment = static_cast<Segment*>(memory);
  try {
    fill(*segment, plan, bytes, offset, blocks);
  } catch (...) {
    ::munmap(memory, bytes);
    ::shm_unlink(path.c_str());
    throw;
  }
  segment->ready.store(1, std::memory_order_release);
  ::munmap(memory, bytes);
}

Mapped::Mapped(const std::string& name) : name_(name) {
  if (name.empty()) throw std::runtime_error("fake verbs: MACMESH_FAKEVERBS names no segment");
  const int fd = ::shm_open(path_of(name).c_str(), O_RDWR, 0);
  if (fd < 0) fail("opening the segment " + name);
  struct stat facts {};
  void* memory = MAP_FAILED;
  if (::fstat(fd, &facts) == 0 && static_cast<std::size_t>(facts.st_size) >= sizeof(Segment)) {
    bytes_ = static_cast<std::size_t>(facts.st_size);
    memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  ::close(fd);
  if (memory == MAP_FAILED) fail("mapping the segment " + name);
  segment_ = static_cast<Segment*>(memory);
  if (segment_->ready.load(std::memory_order_acquire) != 1 || segment_->magic != kMagic ||
      segment_->layout != kLayout || segment_->bytes > bytes_) {
    ::munmap(memory, bytes_);
    throw std::runtime_error("fake verbs: the segment " + name + " is none of this library's version");
  }
}

Mapped::~Mapped() {
  if (segment_ != nullptr) ::munmap(segment_, bytes_);
}

Locked::Locked(Segment& segment) : segment_(segment) {
  [[maybe_unused]] const int result = ::pthread_mutex_lock(&segment_.lock);
#if defined(__linux__)
  if (result == EOWNERDEAD) ::pthread_mutex_consistent(&segment_.lock);
#endif
}

Locked::~Locked() {
  ::pthread_mutex_unlock(&segment_.lock);
}

std::uint64_t fabric_now(const Segment& segment) {
  if (segment.settings.manual_clock) return segment.manual_ns.load(std::memory_order_acquire);
  return static_cast<std::uint64_t>(machine_now() - segment.epoch_ns) / segment.settings.slowdown;
}

bool process_lives(std::int32_t pid) {
  if (::kill(pid, 0) != 0 && errno == ESRCH) return false;
#if defined(__linux__)
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return false;
  char line[512] = {};
  const std::size_t count = std::fread(line, 1, sizeof line - 1, file);
  std::fclose(file);
  line[count] = '\0';
  const char* name_end = std::strrchr(line, ')');
  if (name_end != nullptr && name_end[1] == ' ') return name_end[2] != 'Z' && name_end[2] != 'X';
#endif
  return true;
}

}  // namespace mm::fakeverbs
