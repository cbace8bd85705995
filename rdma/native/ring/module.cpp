#include <nanobind/nanobind.h>

namespace nb = nanobind;

NB_MODULE(_ring, m) { m.attr("LAYOUT_VERSION") = 1; }
