#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "inbox.h"
#include "mapping.h"
#include "outbox.h"

namespace nb = nanobind;
namespace spsc = mm::spsc;

namespace {

class CorruptError : public std::runtime_error {
 public:
  CorruptError() : std::runtime_error("the other side's values in shared memory cannot be") {}
};
class RefusedError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Writer {
 public:
  Writer(int memory, int doorbell, std::size_t most_pending_bytes)
      : mapping_(memory), outbox_(mapping_.span(), doorbell, most_pending_bytes) {}

  void send(const nb::bytes& message) {
    using Sent = spsc::Outbox::Sent;
    switch (outbox_.send({static_cast<const std::byte*>(message.data()), message.size()})) {
      case Sent::kSent:
        return;
      case Sent::kTooLong:
        throw RefusedError("a message of " + std::to_string(message.size()) + " bytes is over the limit of " +
                           std::to_string(spsc::kMostMessageBytes));
      case Sent::kBacklog:
        throw RefusedError("the other side takes nothing: " + std::to_string(outbox_.pending_bytes()) +
                           " bytes wait for it");
      case Sent::kEnded:
        throw RefusedError("the port is closed");
      case Sent::kCorrupt:
        throw CorruptError();
    }
  }
  void push() {
    if (!outbox_.push()) throw CorruptError();
  }
  spsc::Outbox& outbox() { return outbox_; }

 private:
  spsc::Mapping mapping_;
  spsc::Outbox outbox_;
};

class Reader {
 public:
  Reader(int memory, int doorbell) : mapping_(memory), inbox_(mapping_.span(), doorbell) {}

  nb::object read() {
    nb::object message = nb::none();
    const spsc::Result result = inbox_.read([&](std::span<const std::byte> first, std::span<const std::byte> second) {
      nb::object bytes =
          nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(first.size() + second.size())));
      if (!bytes.is_valid()) throw nb::python_error();
      char* into = PyBytes_AS_STRING(bytes.ptr());
      if (!first.empty()) std::memcpy(into, first.data(), first.size());
      if (!second.empty()) std::memcpy(into + first.size(), second.data(), second.size());
      message = std::move(bytes);
    });
    if (result == spsc::Result::kCorrupt) throw CorruptError();
    return message;
  }
  [[nodiscard]] bool ended() const { return inbox_.ended(); }

 private:
  spsc::Mapping mapping_;
  spsc::Inbox inbox_;
};

// Checks before anybody allocates.
std::size_t memory_bytes(std::size_t capacity) {
  spsc::require_capacity(capacity);
  return spsc::memory_bytes(capacity);
}

void format(int memory, std::size_t capacity) {
  const spsc::Mapping mapping(memory);
  spsc::format(mapping.span(), capacity);
}

}  // namespace

NB_MODULE(_ring, m) {
  m.attr("LAYOUT_VERSION") = spsc::kLayoutVersion;
  m.attr("MAX_MESSAGE_BYTES") = spsc::kMostMessageBytes;
  nb::exception<CorruptError>(m, "CorruptError");
  nb::exception<RefusedError>(m, "RefusedError");
  m.def("memory_bytes", &memory_bytes, nb::arg("capacity_bytes"));
  m.def("format", &format, nb::arg("memory"), nb::arg("capacity_bytes"));
  nb::class_<Writer>(m, "Writer")
      .def(nb::init<int, int, std::size_t>(), nb::arg("memory"), nb::arg("doorbell"), nb::arg("most_pending_bytes"))
      .def("send", &Writer::send, nb::arg("message"))
      .def("push", &Writer::push)
      .def("end", [](Writer& writer) { writer.outbox().end(); })
      .def_prop_ro("pending_bytes", [](Writer& writer) { return writer.outbox().pending_bytes(); })
      .def_prop_ro("idle", [](Writer& writer) { return writer.outbox().idle(); })
      .def_prop_ro("rung", [](Writer& writer) { return writer.outbox().rung(); });
  nb::class_<Reader>(m, "Reader")
      .def(nb::init<int, int>(), nb::arg("memory"), nb::arg("doorbell"))
      .def("read", &Reader::read)
      .def_prop_ro("ended", &Reader::ended);
}
