#include <nanobind/nanobind.h>

namespace nb = nanobind;

NB_MODULE(_group, m) {
  m.attr("MLX_VERSION") = MACMESH_MLX_VERSION;
}
