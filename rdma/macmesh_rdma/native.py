"""Loads the native groups, and refuses to where they were built for another version of MLX.

`macmesh_rdma._group` is compiled against MLX's headers and shares its types with it, so it is right for exactly one
version; with another it may fail in any way, at any time. Load it through `load_group` only.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from macmesh_rdma.errors import LocalVersionError

if TYPE_CHECKING:
    from types import ModuleType

MODULE = "macmesh_rdma._group"
_REMEDY = (
    "MLX's own backends (mx.distributed.init) remain usable. "
    "Install the version of MLX that macmesh-rdma pins, or rebuild macmesh-rdma against this one"
)


def installed_mlx_version() -> str:
    """The version of the MLX that this process uses.

    Raises:
        LocalVersionError: MLX cannot be imported.
    """
    try:
        core = importlib.import_module("mlx.core")
    except ImportError as error:
        raise LocalVersionError(f"the native groups need MLX, which cannot be imported: {error}") from error
    version = getattr(core, "__version__", None)
    return str(version) if version else importlib.metadata.version("mlx")


def check_version(built_for: str, installed: str) -> None:
    """Compares the version of MLX that a native module was built for with the one that is here.

    A local version label, such as ``+cpu``, and a build's ``.dev`` suffix count: only the same text is the same.

    Raises:
        LocalVersionError: They differ.
    """
    if built_for != installed:
        raise LocalVersionError(
            f"{MODULE} was built for MLX {built_for}, but MLX {installed} is installed. {_REMEDY}"
        )


def load_group() -> "ModuleType":
    """Imports MLX and the native groups.

    Returns:
        The module `macmesh_rdma._group`.

    Raises:
        LocalVersionError: MLX or the module is missing, the module does not load, or it was built for another version
            of MLX.
    """
    installed = installed_mlx_version()
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        raise LocalVersionError(
            f"{MODULE} cannot be loaded with MLX {installed}: {error}. {_REMEDY}"
        ) from error
    check_version(module.MLX_VERSION, installed)
    return module
