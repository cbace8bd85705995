#include "mlx/bind_links.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <system_error>

#include "core/blocking.h"
#include "mlx/py_link.h"
#include "shm/shm_link.h"
#include "tcp/tcp_link.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mm {
namespace {

// Runs `make` and turns a system error into OSError with its errno.
template <typename Make>
auto with_os_errors(Make make) {
  try {
    return make();
  } catch (const std::system_error& error) {
    nb::object arguments = nb::make_tuple(error.code().value(), nb::str(error.what()));
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
    throw nb::python_error();
  }
}

[[noreturn]] void raise(const Status& status) {
  switch (status.code()) {
    case Code::kTimeout: PyErr_SetString(PyExc_TimeoutError, status.text().c_str()); break;
    case Code::kPeerLost:
    case Code::kAborted: PyErr_SetString(PyExc_ConnectionError, status.text().c_str()); break;
    case Code::kOk:
    case Code::kMismatch:
    case Code::kCorrupt:
    case Code::kLocal: PyErr_SetString(PyExc_RuntimeError, status.text().c_str()); break;
  }
  throw nb::python_error();
}

FrameHeader probe() {
  FrameHeader header;
  header.kind = FrameKind::kProbe;
  return header;
}

// Runs `work(link)` without the GIL and raises what it returns.
template <typename Work>
void measure(PyLink& owner, Work work) {
  Status status;
  {
    const PyLink::Use use(owner);
    const nb::gil_scoped_release release;
    status = work(use.link());
  }
  if (!status.ok()) raise(status);
}

std::vector<double> link_ping(PyLink& owner, std::size_t bytes, std::size_t count, double timeout_seconds) {
  std::vector<double> seconds;
  measure(owner, [&](Link& link) -> Status {
    std::vector<std::byte> payload(bytes);
    seconds.reserve(count);
    const double spin_us = owner.options().spin_us;
    const auto deadline = Deadline::after(timeout_seconds);
    for (std::size_t i = 0; i < count; ++i) {
      const auto start = Clock::now();
      if (Status status = send_message(link.sender(), probe(), payload, deadline, spin_us); !status.ok()) return status;
      if (Status status = receive_message(link.receiver(), payload, deadline, spin_us); !status.ok()) return status;
      seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    return {};
  });
  return seconds;
}

void link_echo(PyLink& owner, std::size_t bytes, std::size_t count, double timeout_seconds) {
  measure(owner, [&](Link& link) -> Status {
    std::vector<std::byte> payload(bytes);
    const double spin_us = owner.options().spin_us;
    const auto deadline = Deadline::after(timeout_seconds);
    for (std::size_t i = 0; i < count; ++i) {
      if (Status status = receive_message(link.receiver(), payload, deadline, spin_us); !status.ok()) return status;
      if (Status status = send_message(link.sender(), probe(), payload, deadline, spin_us); !status.ok()) return status;
    }
    return {};
  });
}

double link_flood(PyLink& owner, std::size_t bytes, std::size_t count, double timeout_seconds) {
  double seconds = 0.0;
  measure(owner, [&](Link& link) -> Status {
    const std::vector<std::byte> payload(bytes, std::byte{1});
    std::byte answer{};
    const double spin_us = owner.options().spin_us;
    const auto deadline = Deadline::after(timeout_seconds);
    const auto start = Clock::now();
    for (std::size_t i = 0; i < count; ++i) {
      if (Status status = send_message(link.sender(), probe(), payload, deadline, spin_us); !status.ok()) return status;
    }
    // The answer comes once all is out of the link.
    if (Status status = receive_message(link.receiver(), {&answer, 1}, deadline, spin_us); !status.ok()) return status;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return {};
  });
  return seconds;
}

void link_drain(PyLink& owner, std::size_t bytes, std::size_t count, double timeout_seconds) {
  measure(owner, [&](Link& link) -> Status {
    std::vector<std::byte> payload(bytes, std::byte{1});
    const std::byte answer{};
    const double spin_us = owner.options().spin_us;
    const auto deadline = Deadline::after(timeout_seconds);
    for (std::size_t i = 0; i < count; ++i) {
      if (Status status = receive_message(link.receiver(), payload, deadline, spin_us); !status.ok()) return status;
    }
    return send_message(link.sender(), probe(), {&answer, 1}, deadline, spin_us);
  });
}

LinkOptions make_options(std::uint32_t num_buffers, std::uint32_t frame_bytes, std::uint32_t buffer_sizes,
                         std::uint32_t max_outstanding, double spin_us) {
  const LinkOptions options{num_buffers, frame_bytes, buffer_sizes, max_outstanding, spin_us};
  options.validate();
  return options;
}

}  // namespace

void bind_links(nb::module_& m) {
  nb::class_<LinkOptions>(m, "LinkOptions", "The knobs of the links.")
      .def(
          "__init__",
          [](LinkOptions* self, std::uint32_t num_buffers, std::uint32_t frame_bytes, std::uint32_t buffer_sizes,
             std::uint32_t max_outstanding, double spin_us) {
            new (self) LinkOptions(make_options(num_buffers, frame_bytes, buffer_sizes, max_outstanding, spin_us));
          },
          nb::kw_only(), "num_buffers"_a, "frame_bytes"_a, "buffer_sizes"_a, "max_outstanding"_a, "spin_us"_a);

  nb::class_<PyLink>(m, "Link", "A path of frames to one peer. Owned by a group once it was handed to one.")
      .def_prop_ro("provider", [](const PyLink& self) { return self.get().provider(); })
      .def_prop_ro("pool_bytes", [](const PyLink& self) { return self.get().pool_bytes(); })
      .def("abort", [](const PyLink& self) { self.get().abort(); });

  m.def(
      "tcp_link",
      [](int descriptor, const LinkOptions& options) {
        return with_os_errors([&] { return new PyLink(tcp_link(descriptor, options), options); });
      },
      "descriptor"_a, "options"_a, nb::rv_policy::take_ownership);
  m.def("shm_bytes", &shm_bytes, "options"_a);
  m.def(
      "shm_link",
      [](int send_memory, int receive_memory, int send_doorbell, int receive_doorbell, const LinkOptions& options) {
        const ShmDescriptors descriptors{send_memory, receive_memory, send_doorbell, receive_doorbell};
        return with_os_errors([&] { return new PyLink(shm_link(descriptors, options), options); });
      },
      "send_memory"_a, "receive_memory"_a, "send_doorbell"_a, "receive_doorbell"_a, "options"_a,
      nb::rv_policy::take_ownership);

  m.def("link_ping", &link_ping, "link"_a, "size_bytes"_a, "count"_a, "timeout_seconds"_a);
  m.def("link_echo", &link_echo, "link"_a, "size_bytes"_a, "count"_a, "timeout_seconds"_a);
  m.def("link_flood", &link_flood, "link"_a, "size_bytes"_a, "count"_a, "timeout_seconds"_a);
  m.def("link_drain", &link_drain, "link"_a, "size_bytes"_a, "count"_a, "timeout_seconds"_a);
}

}  // namespace mm
