#include "verbs/verbs_device.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "verbs/handles.h"

namespace mm::verbs {
namespace {

const char* state_text(std::uint32_t state) {
  switch (state) {
    case 1: return "down";
    case 2: return "initialising";
    case 3: return "armed";
    case 4: return "active";
    default: return "in an unknown state";
  }
}

class VerbsDevice final : public Device {
 public:
  explicit VerbsDevice(std::shared_ptr<Opened> opened) : opened_(std::move(opened)) {}

  [[nodiscard]] std::string name() const override { return opened_->facts.name; }
  [[nodiscard]] const Limits& limits() const override { return opened_->facts.limits; }

  [[nodiscard]] bool port_active() override {
    abi::PortAttr attr{};
    return opened_->call().query_port(opened_->context, opened_->port.number, &attr) == 0 &&
           attr.state == abi::kPortActive;
  }

  std::unique_ptr<Region> register_memory(std::span<std::byte> memory, Status& why) override;

  std::unique_ptr<QueuePair> make_queue_pair(Region& region, const QueueShape& shape, Status& why) override {
    auto* ours = dynamic_cast<VerbsRegion*>(&region);
    if (ours == nullptr || ours->device() != opened_.get()) {
      why = Status(Code::kLocal, opened_->text("the region belongs to another device"));
      return nullptr;
    }
    return make_verbs_queue_pair(opened_, *ours, shape, why);
  }

 private:
  std::shared_ptr<Opened> opened_;
};

std::unique_ptr<Region> VerbsDevice::register_memory(std::span<std::byte> memory, Status& why) {
  const Limits& limits = opened_->facts.limits;
  const std::string what = opened_->text("registering " + std::to_string(memory.size()) + " bytes");
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  if (memory.empty() || reinterpret_cast<std::uintptr_t>(memory.data()) % page != 0) {
    why = Status(Code::kLocal, what + ": the memory must begin at a page and not be empty");
    return nullptr;
  }
  if (limits.max_region_bytes != 0 && memory.size() > limits.max_region_bytes) {
    why = Status(Code::kLocal,
                 what + ": the device takes at most " + std::to_string(limits.max_region_bytes) + " in one region");
    return nullptr;
  }
  // Local writes are all that two-sided sends need, and all that TN3205 allows; some builds of Apple's driver are
  // reported to take only memory that is open to remote access too, which no Thunderbolt device can use.
  constexpr int kRights[] = {abi::kLocalWrite, abi::kLocalWrite | abi::kRemoteWrite | abi::kRemoteRead};
  int error = 0;
  for (const int rights : kRights) {
    errno = 0;
    abi::Mr* mr = opened_->call().reg_mr(opened_->domain, memory.data(), memory.size(), rights);
    if (mr != nullptr) {
      ++atomic_counts().regions_made;
      return std::make_unique<VerbsRegion>(opened_, memory, mr);
    }
    error = errno;
    if (!opened_->facts.thunderbolt) break;
  }
  why = Status(Code::kLocal, failure_text(what, error) + "; the device has at most " +
                                 std::to_string(limits.max_regions) +
                                 " regions for all processes together, and the system a limit of locked memory");
  return nullptr;
}

// The GID that the options choose, checked against the list of the port.
bool choose_gid(Opened& opened, Status& why) {
  for (const GidFacts& gid : opened.port.gids) {
    if (gid.index == opened.options.gid_index) {
      opened.gid = gid.bytes;
      return true;
    }
  }
  std::string there;
  for (const GidFacts& gid : opened.port.gids) there += (there.empty() ? "" : ", ") + std::to_string(gid.index);
  why = Status(Code::kLocal,
               opened.text("port " + std::to_string(opened.port.number) + " has no GID at index " +
                           std::to_string(opened.options.gid_index) + " (it has " +
                           (there.empty() ? std::string("none") : there) +
                           "); give the paired network interface an IPv4 address, and take it out of a bridge"));
  return false;
}

bool choose_port(Opened& opened, Status& why) {
  for (const PortFacts& port : opened.facts.ports) {
    if (port.number != opened.options.port) continue;
    if (!port.active) {
      why = Status(Code::kLocal, opened.text("port " + std::to_string(port.number) + " is " + state_text(port.state) +
                                             ", not active: check the cable, and that RDMA is enabled at both ends"));
      return false;
    }
    opened.port = port;
    return true;
  }
  why = Status(Code::kLocal, opened.text("there is no port " + std::to_string(opened.options.port)));
  return false;
}

}  // namespace

AtomicCounts& atomic_counts() {
  static AtomicCounts all;
  return all;
}

Counts counts() {
  const AtomicCounts& now = atomic_counts();
  return {now.devices_opened, now.devices_closed,   now.regions_made,
          now.regions_destroyed, now.queue_pairs_made, now.queue_pairs_destroyed};
}

Opened::~Opened() {
  if (domain != nullptr) call().dealloc_pd(domain);
  call().close_device(context);
  ++atomic_counts().devices_closed;
}

VerbsRegion::~VerbsRegion() {
  device_->call().dereg_mr(mr_);
  ++atomic_counts().regions_destroyed;
}

std::unique_ptr<Device> open_device(std::shared_ptr<const Library> library, const std::string& name,
                                    const DeviceOptions& options, Status& why) {
  abi::Context* context = library->open_context(name, why);
  if (context == nullptr) return nullptr;
  ++atomic_counts().devices_opened;
  auto opened = std::make_shared<Opened>(std::move(library), context);
  opened->options = options;
  opened->facts = read_facts(opened->call(), context, name);
  if (!opened->facts.failure.empty()) {
    why = Status(Code::kLocal, opened->text(opened->facts.failure));
    return nullptr;
  }
  if (!choose_port(*opened, why) || !choose_gid(*opened, why)) return nullptr;
  errno = 0;
  opened->domain = opened->call().alloc_pd(context);
  if (opened->domain == nullptr) {
    why = Status(Code::kLocal, opened->text(failure_text("allocating the protection domain", errno) +
                                            "; after many set-ups Apple's driver needs a reboot of both Macs"));
    return nullptr;
  }
  return std::make_unique<VerbsDevice>(std::move(opened));
}

}  // namespace mm::verbs
