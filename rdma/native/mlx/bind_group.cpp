#include "mlx/bind_group.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <unistd.h>

#include <cmath>
#include <optional>
#include <system_error>
#include <tuple>
#include <vector>

#include "mlx/bind_host.h"
#include "mlx/blocking_call.h"
#include "mlx/buffer.h"
#include "mlx/group.h"
#include "mlx/py_link.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mm {
namespace {

// All groups that may be open, for the interpreter's end. With the GIL.
std::vector<std::weak_ptr<MeshGroupImpl>>& live_groups() {
  static std::vector<std::weak_ptr<MeshGroupImpl>> groups;
  return groups;
}

void remember(const std::shared_ptr<MeshGroupImpl>& group) {
  std::erase_if(live_groups(), [](const auto& known) { return known.expired(); });
  live_groups().push_back(group);
}

// Says farewell to all peers while threads and callables still can be given up in order.
void close_all() {
  auto groups = std::move(live_groups());
  live_groups().clear();
  for (const auto& known : groups) {
    if (auto group = known.lock()) group->close();
  }
  nb::gil_scoped_release release;
  Blocking::wait_for_none();
}

const char* code_name(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kPeerLost: return "peer_lost";
    case Code::kTimeout: return "timeout";
    case Code::kMismatch: return "mismatch";
    case Code::kCorrupt: return "corrupt";
    case Code::kAborted: return "aborted";
    case Code::kLocal: return "local";
  }
  return "unknown";
}

double checked_seconds(double seconds, const char* name) {
  if (!std::isfinite(seconds) || seconds <= 0) {
    throw std::invalid_argument(std::string(name) + " must be a finite number above 0");
  }
  return seconds;
}

// A Link, several of them, or None.
std::vector<PyLink*> links_of(nb::handle given) {
  std::vector<PyLink*> links;
  if (given.is_none()) return links;
  if (nb::isinstance<PyLink>(given)) return {nb::cast<PyLink*>(given)};
  for (nb::handle link : given) links.push_back(nb::cast<PyLink*>(link));
  return links;
}

struct GivenPeer {
  int rank;
  std::vector<PyLink*> point_to_point;
  std::vector<PyLink*> collective;
  int side_descriptor;
};

std::map<int, Mesh::Peer> take_peers(nb::dict given) {
  // Nothing is taken before all is known to be of the right type.
  std::vector<GivenPeer> parsed;
  for (auto [rank, value] : given) {
    auto fields = nb::cast<nb::tuple>(value);
    if (fields.size() != 3) throw nb::type_error("a peer is a tuple of links, links and a descriptor");
    parsed.push_back({nb::cast<int>(rank), links_of(fields[0]), links_of(fields[1]), nb::cast<int>(fields[2])});
  }
  std::map<int, Mesh::Peer> peers;
  for (const auto& peer : parsed) peers[peer.rank].side_descriptor = peer.side_descriptor;
  try {
    for (const auto& peer : parsed) {
      for (PyLink* link : peer.point_to_point) peers[peer.rank].point_to_point.push_back(link->take());
      for (PyLink* link : peer.collective) peers[peer.rank].collective.push_back(link->take());
    }
  } catch (...) {
    for (const auto& peer : parsed) {
      if (peer.side_descriptor >= 0) ::close(peer.side_descriptor);
    }
    throw;
  }
  return peers;
}

std::shared_ptr<MeshGroupImpl> make_group(int rank, int size, nb::dict peers,
                                          std::tuple<std::uint64_t, std::uint64_t, std::uint64_t> epoch,
                                          std::string name, double timeout_seconds, double spin_us,
                                          bool checksum_payloads, std::optional<nb::callable> split) {
  checked_seconds(timeout_seconds, "timeout_seconds");
  if (!std::isfinite(spin_us) || spin_us < 0) throw std::invalid_argument("spin_us must be a finite number from 0");
  Mesh::Settings settings{{std::get<0>(epoch), std::get<1>(epoch), std::get<2>(epoch)},
                          std::move(name),
                          timeout_seconds,
                          spin_us,
                          checksum_payloads};
  try {
    auto mesh = std::make_shared<Mesh>(rank, size, take_peers(std::move(peers)), std::move(settings));
    auto group = std::make_shared<MeshGroupImpl>(std::move(mesh), split ? split->ptr() : nullptr);
    remember(group);
    return group;
  } catch (const std::system_error& error) {
    nb::object arguments = nb::make_tuple(error.code().value(), nb::str(error.what()));
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
    throw nb::python_error();
  }
}

Message bytes_message() { return {Dtype::kBytes, 0, "bytes"}; }

}  // namespace

void bind_group(nb::module_& m) {
  nb::class_<PyMeshGroup> group(m, "MeshGroup", "A group of ranks joined by links.");
  group
      .def(
          "__init__",
          [](PyMeshGroup* self, int rank, int size, nb::dict peers,
             std::tuple<std::uint64_t, std::uint64_t, std::uint64_t> epoch, std::string name, double timeout_seconds,
             double spin_us, bool checksum_payloads, std::optional<nb::callable> split) {
            new (self) PyMeshGroup{make_group(rank, size, std::move(peers), epoch, std::move(name), timeout_seconds,
                                              spin_us, checksum_payloads, std::move(split))};
          },
          nb::kw_only(), "rank"_a, "size"_a, "peers"_a, "epoch"_a, "name"_a, "timeout_seconds"_a, "spin_us"_a,
          "checksum_payloads"_a = false, "split"_a = nb::none())
      .def_prop_ro("mlx", [](const PyMeshGroup& self) { return mlx::core::distributed::Group(self.impl); })
      .def_prop_ro("rank", [](const PyMeshGroup& self) { return self.impl->rank(); })
      .def_prop_ro("size", [](const PyMeshGroup& self) { return self.impl->size(); })
      .def_prop_ro("failure",
                   [](const PyMeshGroup& self) -> std::optional<std::tuple<std::string, nb::object, int>> {
                     MeshFailure failure = self.impl->mesh()->failure();
                     if (failure.status.ok()) return std::nullopt;
                     // The text may be a peer's, so it need not be UTF-8.
                     const std::string& text = failure.status.text();
                     nb::object decoded = nb::steal(
                         PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
                     return std::tuple(code_name(failure.status.code()), decoded, failure.peer);
                   })
      .def_prop_rw(
          "timeout_seconds", [](const PyMeshGroup& self) { return self.impl->mesh()->timeout(); },
          [](const PyMeshGroup& self, double seconds) {
            self.impl->mesh()->set_timeout(checked_seconds(seconds, "timeout_seconds"));
          })
      .def_prop_rw(
          "receive_timeout_seconds", [](const PyMeshGroup& self) { return self.impl->mesh()->receive_timeout(); },
          [](const PyMeshGroup& self, double seconds) {
            self.impl->mesh()->set_receive_timeout(checked_seconds(seconds, "receive_timeout_seconds"));
          })
      .def_prop_ro("pool_bytes", [](const PyMeshGroup& self) { return self.impl->mesh()->pool_bytes(); })
      .def(
          "send_bytes",
          [](const PyMeshGroup& self, int peer, nb::object payload) {
            Buffer buffer(payload, PyBUF_SIMPLE);
            Blocking blocking;
            nb::gil_scoped_release release;
            self.impl->mesh()->send(peer, bytes_message(), buffer.span());
          },
          "peer"_a, "payload"_a)
      .def(
          "receive_bytes",
          [](const PyMeshGroup& self, int peer, nb::object into) {
            Buffer buffer(into, PyBUF_WRITABLE);
            Blocking blocking;
            nb::gil_scoped_release release;
            self.impl->mesh()->receive(peer, bytes_message(), buffer.span());
          },
          "peer"_a, "into"_a)
      .def(
          "abort", [](const PyMeshGroup& self, const std::string& reason) { self.impl->mesh()->abort(reason); },
          "reason"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("close", [](const PyMeshGroup& self) { self.impl->close(); });
  bind_host(m, group);

  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&close_all));
}

}  // namespace mm
