#pragma once

#include <nanobind/nanobind.h>

namespace mm {

// Adds MeshGroup. `mlx.core` must have been imported.
void bind_group(nanobind::module_& m);

}  // namespace mm
