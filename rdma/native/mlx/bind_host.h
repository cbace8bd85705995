#pragma once

#include <nanobind/nanobind.h>

#include "mlx/group.h"

namespace mm {

// Adds the host transfers to MeshGroup, and what they ask of arrays.
void bind_host(nanobind::module_& m, nanobind::class_<PyMeshGroup>& group);

}  // namespace mm
