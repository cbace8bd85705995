#pragma once

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "fakeverbs/control.h"
#include "tests/check.h"
#include "verbs/verbs_device.h"

// Fabrics of the fake verbs library for native tests: one at a time in a process, which holds the devices of all hosts
// (a_fake0, b_fake0, ...), unless it is told to be one of them.
namespace fake_fabric {

using mm::Status;
using mm::verbs::Completion;
using mm::verbs::Device;
using mm::verbs::DeviceOptions;
using mm::verbs::Library;
using mm::verbs::Mode;
using mm::verbs::QueuePair;
using mm::verbs::QueueShape;
using mm::verbs::Region;

inline constexpr const char* kOneCable = "cables=a.fake0-b.fake0";

class Fabric {
 public:
  explicit Fabric(const std::string& plan) {
    static std::atomic<int> made{0};
    name_ = "macmesh-test-" + std::to_string(::getpid()) + "-" + std::to_string(made++);
    handle_ = ::dlopen(MACMESH_FAKEVERBS_PATH, RTLD_NOW | RTLD_LOCAL);
    CHECK_TEXT(handle_ != nullptr, ::dlerror());
    char answer[256];
    const auto create = symbol<decltype(&macmesh_fakeverbs_create)>("macmesh_fakeverbs_create");
    CHECK_TEXT(create(name_.c_str(), plan.c_str(), answer, sizeof answer) == 0, answer);
    ::setenv("MACMESH_FAKEVERBS", name_.c_str(), 1);
    ::unsetenv("MACMESH_FAKEVERBS_HOST");
    Status why;
    library_ = Library::open(MACMESH_FAKEVERBS_PATH, why);
    CHECK_TEXT(library_ != nullptr, why.text());
  }
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;
  ~Fabric() {
    char answer[256];
    const auto remove = symbol<decltype(&macmesh_fakeverbs_remove)>("macmesh_fakeverbs_remove");
    CHECK_TEXT(remove(name_.c_str(), answer, sizeof answer) == 0, answer);
    ::unsetenv("MACMESH_FAKEVERBS");
  }

  [[nodiscard]] const std::shared_ptr<const Library>& library() const { return library_; }
  [[nodiscard]] const std::string& name() const { return name_; }

  std::string command(const std::string& text) {
    std::vector<char> answer(65536);
    const auto run = symbol<decltype(&macmesh_fakeverbs_command)>("macmesh_fakeverbs_command");
    const int result = run(name_.c_str(), text.c_str(), answer.data(), answer.size());
    CHECK_TEXT(result == 0, answer.data());
    return answer.data();
  }

  std::uint64_t counter(const std::string& key) {
    std::istringstream lines(command("counters"));
    for (std::string line; std::getline(lines, line);) {
      const auto equals = line.find('=');
      if (line.substr(0, equals) == key) return std::strtoull(line.c_str() + equals + 1, nullptr, 10);
    }
    check::failed(__FILE__, __LINE__, "no counter " + key);
  }

  std::unique_ptr<Device> open(const std::string& device, const DeviceOptions& options = {}) {
    Status why;
    auto opened = mm::verbs::open_device(library_, device, options, why);
    CHECK_TEXT(opened != nullptr, why.text());
    return opened;
  }

 private:
  template <typename Function>
  Function symbol(const char* name) {
    auto found = reinterpret_cast<Function>(::dlsym(handle_, name));
    CHECK_TEXT(found != nullptr, name);
    return found;
  }

  std::string name_;
  void* handle_ = nullptr;
  std::shared_ptr<const Library> library_;
};

// Memory that a region can be made of.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : bytes_(bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memory_ = static_cast<std::byte*>(memory);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { ::munmap(memory_, bytes_); }
  [[nodiscard]] std::span<std::byte> all() const { return {memory_, bytes_}; }

 private:
  std::byte* memory_ = nullptr;
  std::size_t bytes_;
};

inline void must(const Status& status) {
  CHECK_TEXT(status.ok(), status.text());
}

// One end: a device, a region and a queue pair.
struct End {
  static constexpr std::size_t kBytes = std::size_t{4} << 20;

  End(Fabric& fabric, const std::string& device, const QueueShape& shape, const DeviceOptions& options = {})
      : opened(fabric.open(device, options)) {
    Status why;
    region = opened->register_memory(pages.all(), why);
    CHECK_TEXT(region != nullptr, why.text());
    pair = opened->make_queue_pair(*region, shape, why);
    CHECK_TEXT(pair != nullptr, why.text());
  }

  [[nodiscard]] std::byte* at(std::size_t offset) const { return pages.all().data() + offset; }

  // Everything that is there now.
  std::vector<Completion> polled() {
    std::vector<Completion> all(64);
    all.resize(pair->poll(all));
    must(pair->failure());
    return all;
  }

  Pages pages{kBytes};
  std::unique_ptr<Device> opened;
  std::unique_ptr<Region> region;
  std::unique_ptr<QueuePair> pair;
};

inline QueueShape shape_of(Mode mode, std::uint32_t requests = 16, std::uint32_t bytes = 65536) {
  return {mode, requests, requests, bytes};
}

// Two ends of one cable in this process, connected.
struct Pair {
  explicit Pair(Fabric& fabric, const QueueShape& shape = shape_of(Mode::kUC), const DeviceOptions& options = {},
                int cable = 0)
      : a(fabric, "a_fake" + std::to_string(cable), shape, options),
        b(fabric, "b_fake" + std::to_string(cable), shape, options) {
    must(a.pair->connect(b.pair->address()));
    must(b.pair->connect(a.pair->address()));
  }
  End a;
  End b;
};

}  // namespace fake_fabric
