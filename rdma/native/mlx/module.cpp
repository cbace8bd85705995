#include <nanobind/nanobind.h>

#include "mlx/bind_group.h"
#include "mlx/bind_links.h"
#include "mlx/bind_verbs.h"

namespace nb = nanobind;

NB_MODULE(_group, m) {
  m.attr("MLX_VERSION") = MACMESH_MLX_VERSION;
  nb::module_::import_("mlx.core");  // defines the types of arrays and groups
  mm::bind_links(m);
  mm::bind_verbs(m);
  mm::bind_group(m);
}
