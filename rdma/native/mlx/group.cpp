#include "mlx/group.h"

#include "mlx/arrays.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <mlx/backend/cpu/encoder.h>
#include <mlx/utils.h>

namespace mx = mlx::core;
namespace nb = nanobind;

namespace mm {
namespace {

template <class Task>
void dispatch(mx::Stream stream, Task&& task) {
  mx::cpu::get_command_encoder(stream).dispatch(std::forward<Task>(task));
}

}  // namespace

MeshGroupImpl::MeshGroupImpl(std::shared_ptr<Mesh> mesh, PyObject* split) : mesh_(std::move(mesh)), split_(split) {
  Py_XINCREF(split_);
}

MeshGroupImpl::~MeshGroupImpl() {
  // At the interpreter's end `close` has been called, and nothing is left that needs the interpreter.
  if (split_ == nullptr || !Py_IsInitialized()) return;
  nb::gil_scoped_acquire acquire;
  Py_CLEAR(split_);
}

void MeshGroupImpl::close() {
  PyObject* split = std::exchange(split_, nullptr);
  {
    nb::gil_scoped_release release;
    mesh_->close();
  }
  Py_XDECREF(split);
}

mx::Stream MeshGroupImpl::communication_stream(mx::StreamOrDevice s) { return mx::to_stream(s, mx::Device::cpu); }

void MeshGroupImpl::all_reduce(Reduction reduction, const mx::array& input, mx::array& output, mx::Stream stream) {
  dispatch(stream, [mesh = mesh_, reduction, message = message_of(input), in = memory_of(input),
                    out = memory_of(output)] { mesh->all_reduce(reduction, message, in.span(), out.span()); });
}

void MeshGroupImpl::all_sum(const mx::array& input, mx::array& output, mx::Stream stream) {
  all_reduce(Reduction::kSum, input, output, stream);
}

void MeshGroupImpl::all_max(const mx::array& input, mx::array& output, mx::Stream stream) {
  all_reduce(Reduction::kMax, input, output, stream);
}

void MeshGroupImpl::all_min(const mx::array& input, mx::array& output, mx::Stream stream) {
  all_reduce(Reduction::kMin, input, output, stream);
}

void MeshGroupImpl::all_gather(const mx::array& input, mx::array& output, mx::Stream stream) {
  dispatch(stream, [mesh = mesh_, message = message_of(input), in = memory_of(input), out = memory_of(output)] {
    mesh->all_gather(message, in.span(), out.span());
  });
}

void MeshGroupImpl::sum_scatter(const mx::array& input, mx::array& output, mx::Stream stream) {
  dispatch(stream, [mesh = mesh_, message = message_of(input), in = memory_of(input), out = memory_of(output)] {
    mesh->sum_scatter(message, in.span(), out.span());
  });
}

void MeshGroupImpl::send(const mx::array& input, int dst, mx::Stream stream) {
  dispatch(stream, [mesh = mesh_, dst, message = message_of(input), in = memory_of(input)] {
    mesh->send(dst, message, in.span());
  });
}

void MeshGroupImpl::recv(mx::array& out, int src, mx::Stream stream) {
  dispatch(stream, [mesh = mesh_, src, message = message_of(out), into = memory_of(out)] {
    mesh->receive(src, message, into.span());
  });
}

std::shared_ptr<mx::distributed::detail::GroupImpl> MeshGroupImpl::split(int color, int key) {
  // Others must be able to run while this waits for the other ranks.
  std::optional<nb::gil_scoped_release> release;
  if (PyGILState_Check() != 0) release.emplace();

  std::array<std::int32_t, 2> mine = {color, key < 0 ? rank() : key};
  std::vector<std::array<std::int32_t, 2>> all(static_cast<std::size_t>(size()));
  Message message{Dtype::kInt32, 0, "a colour and a key", Operation::kSplit};
  mesh_->all_gather(message, std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));

  std::vector<std::pair<std::int32_t, int>> members;  // key, rank
  for (int other = 0; other < size(); ++other) {
    const auto& [its_color, its_key] = all[static_cast<std::size_t>(other)];
    if (other == rank() || (color >= 0 && its_color == color)) members.emplace_back(its_key, other);
  }
  std::sort(members.begin(), members.end());
  if (members.size() == 1) {
    Mesh::Settings settings = mesh_->settings();
    settings.name += " alone";
    settings.timeout_seconds = mesh_->timeout();
    auto mesh = std::make_shared<Mesh>(0, 1, std::map<int, Mesh::Peer>{}, std::move(settings));
    return std::make_shared<MeshGroupImpl>(std::move(mesh), nullptr);
  }
  std::vector<int> ranks;
  for (auto [its_key, other] : members) ranks.push_back(other);

  release.reset();
  nb::gil_scoped_acquire acquire;
  if (split_ == nullptr) {
    throw std::runtime_error("group \"" + mesh_->settings().name +
                             "\" cannot be split: it was made without a way to connect new groups, or was closed");
  }
  nb::object callable = nb::borrow(split_);  // a close during the call lets go of split_
  nb::object made = callable(color, ranks);
  return nb::cast<PyMeshGroup&>(made).impl;
}

}  // namespace mm
