#pragma once

#include <nanobind/nanobind.h>

namespace mm {

// Adds what lists RDMA devices and makes links over them.
void bind_verbs(nanobind::module_& m);

}  // namespace mm
