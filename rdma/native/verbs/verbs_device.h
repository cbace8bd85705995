#pragma once

#include <memory>
#include <string>

#include "verbs/library.h"
#include "verbs/queue_pair.h"

namespace mm::verbs {

// A choice that depends on the device where it is left open.
enum class Choice : std::uint8_t { kAuto, kYes, kNo };

struct DeviceOptions {
  // Which of the port's GIDs is this end's address. On a Mac 1 is the IPv4-mapped address of the paired interface.
  int gid_index = 1;
  std::uint8_t port = 1;
  // Whether waits use the library's completion channel. Auto: not on Thunderbolt, where nobody has shown that its
  // descriptor wakes a poll; without it wait_descriptor() is -1.
  Choice events = Choice::kAuto;
  // Whether drain() moves queue pairs to the error state. Auto: not on Thunderbolt, where the driver is reported to
  // refuse to unmap a region that a queue pair in that state has used; drain() then waits for the sends only.
  Choice error_before_destroy = Choice::kAuto;
};

// Objects of the library that this process has made and destroyed so far. Apple's driver degrades with every round.
struct Counts {
  std::uint64_t devices_opened = 0;
  std::uint64_t devices_closed = 0;
  std::uint64_t regions_made = 0;
  std::uint64_t regions_destroyed = 0;
  std::uint64_t queue_pairs_made = 0;
  std::uint64_t queue_pairs_destroyed = 0;
};

[[nodiscard]] Counts counts();

// Opens the device of that name and allocates its protection domain. Null and the reason where that fails, where the
// port is not active, or where it has no such GID.
std::unique_ptr<Device> open_device(std::shared_ptr<const Library> library, const std::string& name,
                                    const DeviceOptions& options, Status& why);

}  // namespace mm::verbs
