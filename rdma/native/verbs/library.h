#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "verbs/abi.h"
#include "verbs/queue_pair.h"

namespace mm::verbs {

// The library's functions that are symbols. Those after the comment may be null.
struct Functions {
  abi::Device** (*get_device_list)(int*) = nullptr;
  void (*free_device_list)(abi::Device**) = nullptr;
  const char* (*get_device_name)(abi::Device*) = nullptr;
  abi::Context* (*open_device)(abi::Device*) = nullptr;
  int (*close_device)(abi::Context*) = nullptr;
  int (*query_device)(abi::Context*, abi::DeviceAttr*) = nullptr;
  int (*query_port)(abi::Context*, std::uint8_t, abi::PortAttr*) = nullptr;
  int (*query_gid)(abi::Context*, std::uint8_t, int, abi::Gid*) = nullptr;
  abi::Pd* (*alloc_pd)(abi::Context*) = nullptr;
  int (*dealloc_pd)(abi::Pd*) = nullptr;
  abi::Mr* (*reg_mr)(abi::Pd*, void*, std::size_t, int) = nullptr;
  int (*dereg_mr)(abi::Mr*) = nullptr;
  abi::Cq* (*create_cq)(abi::Context*, int, void*, abi::CompChannel*, int) = nullptr;
  int (*destroy_cq)(abi::Cq*) = nullptr;
  abi::Qp* (*create_qp)(abi::Pd*, abi::QpInitAttr*) = nullptr;
  int (*modify_qp)(abi::Qp*, abi::QpAttr*, int) = nullptr;
  int (*destroy_qp)(abi::Qp*) = nullptr;
  // Of use where they are there.
  int (*query_qp)(abi::Qp*, abi::QpAttr*, int, abi::QpInitAttr*) = nullptr;
  abi::CompChannel* (*create_comp_channel)(abi::Context*) = nullptr;
  int (*destroy_comp_channel)(abi::CompChannel*) = nullptr;
  int (*get_cq_event)(abi::CompChannel*, abi::Cq**, void**) = nullptr;
  void (*ack_cq_events)(abi::Cq*, unsigned) = nullptr;
  const char* (*wc_status_str)(std::uint32_t) = nullptr;

  [[nodiscard]] bool has_events() const {
    return create_comp_channel && destroy_comp_channel && get_cq_event && ack_cq_events;
  }
};

struct GidFacts {
  int index = 0;
  std::array<std::byte, 16> bytes{};
};

struct PortFacts {
  std::uint8_t number = 1;
  bool active = false;
  std::uint32_t state = 0;  // ibv_port_state: 1 down, 4 active
  std::uint8_t mtu = 0;     // ibv_mtu of now
  std::uint8_t link_layer = 0;
  std::uint16_t lid = 0;
  std::vector<GidFacts> gids;  // those that are not zero
};

struct DeviceFacts {
  std::string name;
  std::uint64_t guid = 0;
  bool thunderbolt = false;
  Limits limits;
  std::vector<PortFacts> ports;
  std::string failure;  // why nothing more than the name is known; empty where all went well
};

// A verbs library, opened at run time. It stays loaded until the process ends, because providers keep threads.
class Library {
 public:
  // The path that `open` takes where it is given none: MACMESH_VERBS_LIBRARY, or the system's library.
  [[nodiscard]] static std::string default_path();

  // Null and the reason where it is missing or lacks a function. `path` empty: default_path().
  static std::shared_ptr<const Library> open(const std::string& path, Status& why);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const Functions& functions() const { return functions_; }

  // All devices, in the library's order. `why` says when the list itself cannot be had; an empty list is no failure.
  [[nodiscard]] std::vector<DeviceFacts> devices(Status& why) const;

  // The device of that name, opened; null and the reason.
  [[nodiscard]] abi::Context* open_context(const std::string& name, Status& why) const;

 private:
  Library(std::string path, const Functions& functions) : path_(std::move(path)), functions_(functions) {}

  std::string path_;
  Functions functions_;
};

// What one device says of itself and of its ports. Used for the list and when a device is opened.
[[nodiscard]] DeviceFacts read_facts(const Functions& functions, abi::Context* context, const std::string& name);

// "posting a receive: Cannot allocate memory (errno 12)". Libraries return errno's values of either sign.
[[nodiscard]] std::string failure_text(const std::string& what, int error);

}  // namespace mm::verbs
