#pragma once

#include <Python.h>

#include <memory>
#include <mutex>

#include <mlx/array.h>
#include <mlx/distributed/distributed_impl.h>

#include "core/mesh.h"

namespace mm {

// What MLX sees of a mesh. Its operations are queued on CPU streams, as those of MLX's own backends are; what a task
// needs (the mesh, the arrays' memory) lives as long as the task, so that this object may go at any time.
class MeshGroupImpl : public mlx::core::distributed::detail::GroupImpl {
 public:
  // `split` makes the groups that `split` asks for: a callable of (colour, ranks) that returns a MeshGroup; null where
  // there is none. Made with the GIL.
  MeshGroupImpl(std::shared_ptr<Mesh> mesh, PyObject* split);
  ~MeshGroupImpl() override;
  MeshGroupImpl(const MeshGroupImpl&) = delete;
  MeshGroupImpl& operator=(const MeshGroupImpl&) = delete;

  mlx::core::Stream communication_stream(mlx::core::StreamOrDevice s) override;
  int rank() override { return mesh_->rank(); }
  int size() override { return mesh_->size(); }
  // As MPI_Comm_split: the ranks of one colour make a group, ordered by key, then by rank; a negative key stands for
  // the rank. A rank that is alone in its colour, or whose colour is negative, gets a group of its own. All ranks must
  // call it, and none while an operation is queued. With or without the GIL.
  std::shared_ptr<GroupImpl> split(int color, int key) override;

  void all_sum(const mlx::core::array& input, mlx::core::array& output, mlx::core::Stream stream) override;
  void all_max(const mlx::core::array& input, mlx::core::array& output, mlx::core::Stream stream) override;
  void all_min(const mlx::core::array& input, mlx::core::array& output, mlx::core::Stream stream) override;
  void all_gather(const mlx::core::array& input, mlx::core::array& output, mlx::core::Stream stream) override;
  void sum_scatter(const mlx::core::array& input, mlx::core::array& output, mlx::core::Stream stream) override;
  void send(const mlx::core::array& input, int dst, mlx::core::Stream stream) override;
  void recv(mlx::core::array& out, int src, mlx::core::Stream stream) override;

  [[nodiscard]] const std::shared_ptr<Mesh>& mesh() const { return mesh_; }

  // Closes the mesh and lets go of the split callable, which often refers back to this group. With the GIL held.
  void close();

 private:
  void all_reduce(Reduction reduction, const mlx::core::array& input, mlx::core::array& output,
                  mlx::core::Stream stream);

  std::shared_ptr<Mesh> mesh_;
  PyObject* split_;  // owned; guarded by the GIL
};

// The Python object `MeshGroup`.
struct PyMeshGroup {
  std::shared_ptr<MeshGroupImpl> impl;
};

}  // namespace mm
