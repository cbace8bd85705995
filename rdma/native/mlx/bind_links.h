#pragma once

#include <nanobind/nanobind.h>

namespace mm {

// Adds LinkOptions, Link, the functions that make links, and those that measure one.
void bind_links(nanobind::module_& m);

}  // namespace mm
