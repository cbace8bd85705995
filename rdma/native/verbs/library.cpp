#include "verbs/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

namespace mm::verbs {
namespace {

#if defined(__APPLE__)
constexpr const char* kSystemLibrary = "/usr/lib/librdma.dylib";
constexpr const char* kMissing =
    "RDMA over Thunderbolt needs macOS 26.2 or later on a Mac with Thunderbolt 5, and `rdma_ctl enable` in Recovery";
#else
constexpr const char* kSystemLibrary = "libibverbs.so.1";
constexpr const char* kMissing = "install it (Debian: libibverbs1 and ibverbs-providers), or choose the provider tcp";
#endif

template <typename Function>
bool find(void* handle, const char* name, Function& into) {
  into = reinterpret_cast<Function>(::dlsym(handle, name));
  return into != nullptr;
}

// The name of the first function that is needed and missing; empty where none is.
std::string resolve(void* handle, Functions& f) {
  std::string missing;
  const auto need = [&](const char* name, auto& into) {
    if (!find(handle, name, into) && missing.empty()) missing = name;
  };
  need("ibv_get_device_list", f.get_device_list);
  need("ibv_free_device_list", f.free_device_list);
  need("ibv_get_device_name", f.get_device_name);
  need("ibv_open_device", f.open_device);
  need("ibv_close_device", f.close_device);
  need("ibv_query_device", f.query_device);
  need("ibv_query_port", f.query_port);
  need("ibv_query_gid", f.query_gid);
  need("ibv_alloc_pd", f.alloc_pd);
  need("ibv_dealloc_pd", f.dealloc_pd);
  need("ibv_reg_mr", f.reg_mr);
  need("ibv_dereg_mr", f.dereg_mr);
  need("ibv_create_cq", f.create_cq);
  need("ibv_destroy_cq", f.destroy_cq);
  need("ibv_create_qp", f.create_qp);
  need("ibv_modify_qp", f.modify_qp);
  need("ibv_destroy_qp", f.destroy_qp);
  find(handle, "ibv_query_qp", f.query_qp);
  find(handle, "ibv_create_comp_channel", f.create_comp_channel);
  find(handle, "ibv_destroy_comp_channel", f.destroy_comp_channel);
  find(handle, "ibv_get_cq_event", f.get_cq_event);
  find(handle, "ibv_ack_cq_events", f.ack_cq_events);
  find(handle, "ibv_wc_status_str", f.wc_status_str);
  return missing;
}

std::uint64_t from_network_order(std::uint64_t value) {
  unsigned char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  std::uint64_t result = 0;
  for (const unsigned char byte : bytes) result = result << 8 | byte;
  return result;
}

// Devices say "no bound" as zero or as a negative number.
std::uint32_t bound(int value) {
  return value > 0 ? static_cast<std::uint32_t>(value) : 0;
}

PortFacts read_port(const Functions& functions, abi::Context* context, std::uint8_t number, const abi::PortAttr& attr) {
  PortFacts port;
  port.number = number;
  port.state = attr.state;
  port.active = attr.state == abi::kPortActive;
  port.mtu = static_cast<std::uint8_t>(attr.active_mtu);
  port.link_layer = attr.link_layer;
  port.lid = attr.lid;
  constexpr int kMostGids = 256;
  for (int index = 0; index < std::min(attr.gid_tbl_len, kMostGids); ++index) {
    abi::Gid gid{};
    if (functions.query_gid(context, number, index, &gid) != 0) continue;
    GidFacts facts;
    facts.index = index;
    std::memcpy(facts.bytes.data(), gid.raw, sizeof gid.raw);
    if (facts.bytes != std::array<std::byte, 16>{}) port.gids.push_back(facts);
  }
  return port;
}

}  // namespace

std::string failure_text(const std::string& what, int error) {
  const int number = error < 0 ? -error : error;
  return what + ": " + std::generic_category().message(number) + " (errno " + std::to_string(number) + ")";
}

std::string Library::default_path() {
  const char* chosen = std::getenv("MACMESH_VERBS_LIBRARY");
  return chosen != nullptr && *chosen != '\0' ? chosen : kSystemLibrary;
}

std::shared_ptr<const Library> Library::open(const std::string& path, Status& why) {
  const std::string chosen = path.empty() ? default_path() : path;
  void* handle = ::dlopen(chosen.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = ::dlerror();
    why = Status(Code::kLocal, "the verbs library cannot be loaded: " +
                                   std::string(reason != nullptr ? reason : chosen.c_str()) + "; " + kMissing);
    return nullptr;
  }
  Functions functions;
  if (const std::string missing = resolve(handle, functions); !missing.empty()) {
    why = Status(Code::kLocal, chosen + " is no verbs library that can be used: it lacks " + missing);
    ::dlclose(handle);
    return nullptr;
  }
  return std::shared_ptr<const Library>(new Library(chosen, functions));
}

DeviceFacts read_facts(const Functions& functions, abi::Context* context, const std::string& name) {
  DeviceFacts facts;
  facts.name = name;
  abi::DeviceAttr attr{};
  if (const int error = functions.query_device(context, &attr); error != 0) {
    facts.failure = failure_text("asking the device " + name + " for its limits", error);
    return facts;
  }
  facts.guid = from_network_order(attr.node_guid);
  Limits& limits = facts.limits;
  limits.max_queue_pairs = bound(attr.max_qp);
  limits.max_regions = bound(attr.max_mr);
  limits.max_send_requests = limits.max_receive_requests = bound(attr.max_qp_wr);
  limits.max_completions = bound(attr.max_cqe);
  limits.max_region_bytes = attr.max_mr_size;
  for (unsigned number = 1; number <= attr.phys_port_cnt; ++number) {
    abi::PortAttr port{};
    const auto port_number = static_cast<std::uint8_t>(number);
    if (const int error = functions.query_port(context, port_number, &port); error != 0) {
      facts.failure = failure_text("asking the device " + name + " for port " + std::to_string(number), error);
      return facts;
    }
    facts.ports.push_back(read_port(functions, context, port_number, port));
    facts.thunderbolt = facts.thunderbolt || port.link_layer == abi::kLinkLayerThunderbolt;
    const std::uint64_t message_bytes = port.max_msg_sz;
    limits.max_message_bytes =
        limits.max_message_bytes == 0 ? message_bytes : std::min(limits.max_message_bytes, message_bytes);
  }
  // TN3205: "Queues are sized in units of 4 KB frames", and both ends must post the same number of frames.
  if (facts.thunderbolt) limits.frame_bytes = 4096;
  return facts;
}

std::vector<DeviceFacts> Library::devices(Status& why) const {
  std::vector<DeviceFacts> all;
  int count = 0;
  errno = 0;
  abi::Device** list = functions_.get_device_list(&count);
  if (list == nullptr) {
    // Linux without the kernel's part says "no such device system" in this way: nothing is wrong with the library.
    if (errno == ENOSYS) return all;
    why = Status(Code::kLocal, failure_text(path_ + ": listing the devices", errno));
    return all;
  }
  for (int i = 0; i < count; ++i) {
    const char* name = functions_.get_device_name(list[i]);
    DeviceFacts facts;
    facts.name = name != nullptr ? name : "";
    errno = 0;
    if (abi::Context* context = functions_.open_device(list[i]); context != nullptr) {
      facts = read_facts(functions_, context, facts.name);
      functions_.close_device(context);
    } else {
      facts.failure = failure_text("opening the device " + facts.name, errno);
    }
    all.push_back(std::move(facts));
  }
  functions_.free_device_list(list);
  return all;
}

abi::Context* Library::open_context(const std::string& name, Status& why) const {
  int count = 0;
  errno = 0;
  abi::Device** list = functions_.get_device_list(&count);
  if (list == nullptr) {
    why = Status(Code::kLocal, failure_text(path_ + ": listing the devices", errno));
    return nullptr;
  }
  abi::Context* context = nullptr;
  bool found = false;
  std::string names;
  for (int i = 0; i < count && !found; ++i) {
    const char* there = functions_.get_device_name(list[i]);
    if (there == nullptr) continue;
    names += (names.empty() ? "" : ", ") + std::string(there);
    if (name != there) continue;
    found = true;
    errno = 0;
    context = functions_.open_device(list[i]);
    if (context == nullptr) why = Status(Code::kLocal, failure_text("opening the device " + name, errno));
  }
  functions_.free_device_list(list);
  if (!found) {
    why = Status(Code::kLocal, "there is no device " + name + "; " + path_ + " has " +
                                   (names.empty() ? std::string("none") : names));
  }
  return context;
}

}  // namespace mm::verbs
