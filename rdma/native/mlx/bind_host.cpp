#include "mlx/bind_host.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <mlx/allocator.h>

#include "mlx/arrays.h"
#include "mlx/blocking_call.h"
#include "mlx/buffer.h"

namespace mx = mlx::core;
namespace nb = nanobind;
using namespace nb::literals;

namespace mm {
namespace {

ArrayFacts facts_of(const mx::array& array) {
  return {dtype_of(array.dtype()), {array.shape().begin(), array.shape().end()}};
}

// Waits for nothing: whoever evaluates says when, and on which stream. With the GIL.
void require_memory(const std::vector<mx::array>& arrays, const char* what) {
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const char* problem = nullptr;
    if (!arrays[i].is_available()) problem = " is not evaluated: evaluate it first";
    else if (!in_order(arrays[i])) problem = " is not row-contiguous: make it so with mx.contiguous";
    if (problem == nullptr) continue;
    ArrayFacts facts = facts_of(arrays[i]);
    throw std::runtime_error(std::string(what) + ": array " + std::to_string(i) + " of " +
                             to_text(std::span(&facts, 1)) + problem);
  }
}

// None stands for the group's; infinity for none.
double seconds_of(const PyMeshGroup& self, std::optional<double> given) {
  const double seconds = given.value_or(self.impl->mesh()->timeout());
  if (std::isnan(seconds) || seconds <= 0) throw std::invalid_argument("timeout_seconds must be a number above 0");
  return seconds;
}

void host_send(const PyMeshGroup& self, int peer, const std::vector<mx::array>& arrays,
               std::optional<double> timeout_seconds) {
  const double seconds = seconds_of(self, timeout_seconds);
  require_memory(arrays, "host_send");
  Blocking blocking;
  nb::gil_scoped_release release;
  std::vector<Memory> memory;
  std::vector<OutgoingArray> outgoing;
  for (const auto& array : arrays) {
    memory.push_back(memory_of(array));
    outgoing.push_back({facts_of(array), memory.back().span()});
  }
  self.impl->mesh()->host_send(peer, outgoing, seconds);
}

void host_receive_into(const PyMeshGroup& self, int peer, const std::vector<mx::array>& arrays,
                       std::optional<double> timeout_seconds) {
  const double seconds = seconds_of(self, timeout_seconds);
  require_memory(arrays, "host_receive_into");
  Blocking blocking;
  nb::gil_scoped_release release;
  std::vector<Memory> memory;
  std::vector<ArrayFacts> expected;
  for (const auto& array : arrays) {
    memory.push_back(memory_of(array));
    expected.push_back(facts_of(array));
  }
  auto place = [&](const Label& label, std::vector<std::span<std::byte>>& into) {
    if (label.arrays != expected) {
      return Status(Code::kMismatch, "rank " + std::to_string(peer) + " sent other arrays than rank " +
                                         std::to_string(self.impl->rank()) + " expected: expected " +
                                         to_text(expected) + ", came " + to_text(label.arrays));
    }
    for (const auto& part : memory) into.push_back(part.span());
    return Status();
  };
  self.impl->mesh()->host_receive(peer, place, seconds);
}

std::vector<mx::array> host_receive(const PyMeshGroup& self, int peer, std::optional<double> timeout_seconds) {
  const double seconds = seconds_of(self, timeout_seconds);
  std::vector<mx::array> made;
  auto place = [&](const Label& label, std::vector<std::span<std::byte>>& into) {
    for (std::size_t i = 0; i < label.arrays.size(); ++i) {
      const auto& facts = label.arrays[i];
      made.emplace_back(mx::allocator::malloc(label.sizes[i]), mx::Shape(facts.shape.begin(), facts.shape.end()),
                        mlx_dtype_of(facts.dtype));
      into.push_back(memory_of(made.back()).span());
    }
    return Status();
  };
  Blocking blocking;
  nb::gil_scoped_release release;
  self.impl->mesh()->host_receive(peer, place, seconds);
  return made;
}

void host_send_message(const PyMeshGroup& self, int peer, nb::object payload, std::optional<double> timeout_seconds) {
  const double seconds = seconds_of(self, timeout_seconds);
  Buffer buffer(payload, PyBUF_SIMPLE);
  Blocking blocking;
  nb::gil_scoped_release release;
  self.impl->mesh()->host_send_message(peer, buffer.span(), seconds);
}

nb::bytes host_receive_message(const PyMeshGroup& self, int peer, std::optional<double> timeout_seconds) {
  const double seconds = seconds_of(self, timeout_seconds);
  std::vector<std::byte> bytes;
  Blocking blocking;
  {
    nb::gil_scoped_release release;
    bytes = self.impl->mesh()->host_receive_message(peer, seconds);
  }
  return nb::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

void bind_host(nb::module_& m, nb::class_<PyMeshGroup>& group) {
  m.def(
      "require_memory", [](const std::vector<mx::array>& arrays) { require_memory(arrays, "require_memory"); },
      "arrays"_a);
  group.def("host_send", &host_send, "peer"_a, "arrays"_a, "timeout_seconds"_a = nb::none())
      .def("host_receive_into", &host_receive_into, "peer"_a, "arrays"_a, "timeout_seconds"_a = nb::none())
      .def("host_receive", &host_receive, "peer"_a, "timeout_seconds"_a = nb::none())
      .def("host_send_message", &host_send_message, "peer"_a, "payload"_a, "timeout_seconds"_a = nb::none())
      .def("host_receive_message", &host_receive_message, "peer"_a, "timeout_seconds"_a = nb::none());
}

}  // namespace mm
