#pragma once

#include <nanobind/nanobind.h>

#include "mlx/group.h"

namespace mm {

// Adds the host transfers to MeshGroup.
void bind_host(nanobind::class_<PyMeshGroup>& group);

}  // namespace mm
