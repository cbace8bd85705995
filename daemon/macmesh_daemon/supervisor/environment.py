"""The environment of a worker, which MLX reads when it is imported.

Only variables that MLX has are set, and never one that is set already:

* ``MLX_PTX_CACHE_DIR`` (CUDA): where kernels that were compiled at run time are kept. By default that is a folder for
  temporary files, so the first pass after a restart of the machine compiles for up to a minute. MLX tells such files
  apart by the names of kernels alone, so the folder is one for each version of MLX and for the machine's cards.

Metal has no such variable: macOS keeps compiled shaders for each program itself. The sizes of the allocator's pools are
not variables either; the worker sets them by calls, from its ledger.
"""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CACHE_VARIABLE: Final = "MLX_PTX_CACHE_DIR"
_CARDS: Final = Path("/proc/driver/nvidia/gpus")


def worker_environment(
    environment: Mapping[str, str], *, kernels_folder: Path, mlx_version: str, cards: Sequence[str]
) -> dict[str, str]:
    """The environment that a worker is started with. Pure.

    Args:
        environment: of this process.
        kernels_folder: below it compiled kernels are kept.
        mlx_version: what the worker will import.
        cards: what tells the machine's CUDA cards from others; empty where it has none.
    """
    made = dict(environment)
    if cards and not made.get(CACHE_VARIABLE):
        which = hashlib.sha256("\n".join(sorted(cards)).encode()).hexdigest()[:8]
        made[CACHE_VARIABLE] = str(kernels_folder / f"mlx-{mlx_version}-{which}")
    return made


def this_machines(environment: Mapping[str, str], *, kernels_folder: Path) -> dict[str, str]:
    """`worker_environment` on this machine."""
    return worker_environment(
        environment,
        kernels_folder=kernels_folder,
        mlx_version=metadata.version("mlx"),
        cards=cuda_cards(),
    )


def cuda_cards(folder: Path = _CARDS, *, system: str = sys.platform) -> tuple[str, ...]:
    """The names of the machine's CUDA cards, as the driver has them; empty where there is none.

    Args:
        folder: of the driver, with a folder for each card.
        system: as `sys.platform`.
    """
    if system != "linux":
        return ()
    names = []
    for information in sorted(folder.glob("*/information")):
        try:
            lines = information.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")] or ["unknown"]
    return tuple(names)
