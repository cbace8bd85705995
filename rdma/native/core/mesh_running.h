#pragma once

#include <mutex>

#include "core/mesh.h"

namespace mm {

// Keeps the links from being given up while an operation uses them. Throws where the group has ended.
class Mesh::Running {
 public:
  Running(Mesh& mesh, const char* what) : mesh_(mesh) {
    {
      std::lock_guard lock(mesh_.mutex_);
      if (!mesh_.over_) {
        ++mesh_.running_;
        return;
      }
    }
    mesh_.raise(what);
  }
  ~Running() {
    std::lock_guard lock(mesh_.mutex_);
    if (--mesh_.running_ == 0) mesh_.changed_.notify_all();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  Mesh& mesh_;
};

}  // namespace mm
