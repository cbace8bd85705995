#include "mlx/bind_verbs.h"

#include <arpa/inet.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <optional>
#include <system_error>

#include "mlx/py_link.h"
#include "verbs/library.h"
#include "verbs/verbs_device.h"
#include "verbs/verbs_link.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mm {
namespace {

struct PyVerbsCable {
  std::string device;
  std::uint8_t port = 1;
  int gid_index = 0;
};

struct PyVerbsOptions {
  std::string library;
  verbs::LinkSettings settings;
};

[[noreturn]] void raise(const Status& status) {
  PyObject* type = PyExc_RuntimeError;
  if (status.code() == Code::kTimeout) type = PyExc_TimeoutError;
  if (status.code() == Code::kPeerLost || status.code() == Code::kAborted) type = PyExc_ConnectionError;
  if (status.code() == Code::kLocal) type = PyExc_OSError;
  if (status.code() == Code::kMismatch) type = PyExc_ValueError;
  PyErr_SetString(type, status.text().c_str());
  throw nb::python_error();
}

std::shared_ptr<const verbs::Library> open_library(const std::string& path) {
  Status why;
  auto library = verbs::Library::open(path, why);
  if (!library) raise(Status(Code::kLocal, why.text()));
  return library;
}

const char* state_name(std::uint32_t state) {
  constexpr const char* kNames[] = {"PORT_NOP", "PORT_DOWN", "PORT_INIT", "PORT_ARMED", "PORT_ACTIVE", "PORT_ACTIVE_DEFER"};
  return state < std::size(kNames) ? kNames[state] : "PORT_UNKNOWN";
}

nb::dict limits_dict(const verbs::Limits& limits) {
  nb::dict out;
  out["max_queue_pairs"] = limits.max_queue_pairs;
  out["max_regions"] = limits.max_regions;
  out["max_send_requests"] = limits.max_send_requests;
  out["max_receive_requests"] = limits.max_receive_requests;
  out["max_completions"] = limits.max_completions;
  out["max_message_bytes"] = limits.max_message_bytes;
  out["max_region_bytes"] = limits.max_region_bytes;
  out["frame_bytes"] = limits.frame_bytes;
  return out;
}

nb::list list_devices(const std::optional<std::string>& path) {
  const auto library = open_library(path.value_or(""));
  Status why;
  const auto devices = library->devices(why);
  if (!why.ok()) raise(Status(Code::kLocal, why.text()));
  nb::list out;
  for (const verbs::DeviceFacts& device : devices) {
    nb::dict facts;
    facts["name"] = device.name;
    facts["guid"] = device.guid;
    facts["thunderbolt"] = device.thunderbolt;
    facts["failure"] = device.failure;
    facts["limits"] = limits_dict(device.limits);
    nb::list ports;
    for (const verbs::PortFacts& port : device.ports) {
      nb::dict of;
      of["number"] = port.number;
      of["state"] = state_name(port.state);
      of["mtu"] = port.mtu;
      nb::list gids;
      for (const verbs::GidFacts& gid : port.gids) {
        char text[INET6_ADDRSTRLEN];
        if (::inet_ntop(AF_INET6, gid.bytes.data(), text, sizeof text) == nullptr) continue;
        gids.append(nb::make_tuple(gid.index, std::string(text)));
      }
      of["gids"] = gids;
      ports.append(of);
    }
    facts["ports"] = ports;
    out.append(facts);
  }
  return out;
}

// With the socket taken over, also where it throws.
std::unique_ptr<verbs::VerbsLink> make_link(int control, const std::vector<PyVerbsCable>& cables,
                                            const LinkOptions& options, const PyVerbsOptions& given,
                                            double deadline_seconds, Status& why) {
  Descriptor socket(control);
  const auto deadline = Deadline::after(deadline_seconds);
  const auto library = verbs::Library::open(given.library, why);
  if (!library) return nullptr;
  std::vector<verbs::Cable> opened;
  for (const PyVerbsCable& cable : cables) {
    verbs::DeviceOptions device;
    device.port = cable.port;
    device.gid_index = cable.gid_index;
    opened.push_back({verbs::open_device(library, cable.device, device, why),
                      cable.device + " port " + std::to_string(cable.port)});
    if (!opened.back().device) return nullptr;
  }
  return verbs::verbs_link(socket.release(), std::move(opened), options, given.settings, deadline, why);
}

PyLink* verbs_link(int control, const std::vector<PyVerbsCable>& cables, const LinkOptions& options,
                   const PyVerbsOptions& given, double deadline_seconds) {
  Status why;
  std::unique_ptr<verbs::VerbsLink> link;
  try {
    const nb::gil_scoped_release release;
    link = make_link(control, cables, options, given, deadline_seconds, why);
  } catch (const std::system_error& error) {
    nb::object arguments = nb::make_tuple(error.code().value(), nb::str(error.what()));
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
    throw nb::python_error();
  }
  if (!link) raise(why);
  return new PyLink(std::move(link), options);
}

verbs::ModeChoice mode_of(const std::string& mode) {
  if (mode == "auto") return verbs::ModeChoice::kAuto;
  if (mode == "uc") return verbs::ModeChoice::kUC;
  if (mode == "rc") return verbs::ModeChoice::kRC;
  throw std::invalid_argument("verbs setting mode = \"" + mode + "\": must be auto, uc or rc");
}

nb::dict counts() {
  const verbs::Counts now = verbs::counts();
  nb::dict out;
  out["devices_opened"] = now.devices_opened;
  out["devices_closed"] = now.devices_closed;
  out["regions_made"] = now.regions_made;
  out["regions_freed"] = now.regions_destroyed;
  out["queue_pairs_made"] = now.queue_pairs_made;
  out["queue_pairs_freed"] = now.queue_pairs_destroyed;
  return out;
}

const verbs::VerbsLink& of_verbs(const PyLink& link) {
  const auto* of = dynamic_cast<const verbs::VerbsLink*>(&link.get());
  if (of == nullptr) throw std::invalid_argument("the link is carried by " + link.get().provider() + ", not by verbs");
  return *of;
}

nb::dict link_facts(const PyLink& link) {
  const verbs::VerbsLink& of = of_verbs(link);
  const verbs::LinkCounts counts = of.counts();
  nb::dict out;
  out["mode"] = of.mode() == verbs::Mode::kRC ? "rc" : "uc";
  nb::list classes;
  for (const verbs::SizeClass& k : of.fit().classes) {
    nb::dict facts;
    facts["bytes"] = k.bytes;
    facts["sends"] = k.sends;
    facts["receives"] = k.receives;
    classes.append(facts);
  }
  out["classes"] = classes;
  out["notes"] = of.fit().notes;
  out["cables"] = of.fit().cables;
  out["cables_alive"] = counts.cables;
  out["regions"] = of.fit().cables;
  out["queue_pairs"] = of.fit().cables * of.fit().classes.size();
  out["retransmitted"] = counts.retransmitted;
  out["lost"] = counts.lost;
  out["broken"] = counts.broken;
  out["repeated"] = counts.repeated;
  out["probes"] = counts.probes;
  out["reports"] = counts.reports;
  return out;
}

}  // namespace

void bind_verbs(nb::module_& m) {
  nb::class_<PyVerbsCable>(m, "VerbsCable", "This end of a cable to the peer.")
      .def(
          "__init__",
          [](PyVerbsCable* self, std::string device, std::uint8_t port, int gid_index) {
            new (self) PyVerbsCable{std::move(device), port, gid_index};
          },
          nb::kw_only(), "device"_a, "port"_a, "gid_index"_a);

  nb::class_<PyVerbsOptions>(m, "VerbsOptions", "What links over RDMA devices have beside the knobs of all links.")
      .def(
          "__init__",
          [](PyVerbsOptions* self, std::string library, const std::string& mode, std::string build,
             double retransmit_ms, double silence_seconds, double linger_seconds, std::uint32_t max_attempts,
             std::uint32_t links_per_device) {
            verbs::LinkSettings settings;
            settings.mode = mode_of(mode);
            settings.build = std::move(build);
            settings.retransmit_ms = retransmit_ms;
            settings.silence_seconds = silence_seconds;
            settings.linger_seconds = linger_seconds;
            settings.max_attempts = max_attempts;
            settings.links_per_device = links_per_device;
            settings.validate();
            new (self) PyVerbsOptions{std::move(library), std::move(settings)};
          },
          nb::kw_only(), "library"_a = "", "mode"_a = "auto", "build"_a = "",
          "retransmit_ms"_a = verbs::LinkSettings{}.retransmit_ms,
          "silence_seconds"_a = verbs::LinkSettings{}.silence_seconds,
          "linger_seconds"_a = verbs::LinkSettings{}.linger_seconds,
          "max_attempts"_a = verbs::LinkSettings{}.max_attempts,
          "links_per_device"_a = verbs::LinkSettings{}.links_per_device);

  m.def("verbs_devices", &list_devices, "library"_a = nb::none());
  m.def("verbs_link", &verbs_link, "control"_a, "cables"_a, "options"_a, "verbs"_a, "deadline_seconds"_a,
        nb::rv_policy::take_ownership);
  m.def("verbs_link_facts", &link_facts, "link"_a);
  m.def("verbs_counts", &counts);
}

}  // namespace mm
