#include <nanobind/nanobind.h>

#include "mlx/bind_links.h"

namespace nb = nanobind;

NB_MODULE(_group, m) {
  m.attr("MLX_VERSION") = MACMESH_MLX_VERSION;
  mm::bind_links(m);
}
