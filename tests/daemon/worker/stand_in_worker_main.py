"""A worker whose engine is that of `engine_stand_ins`, for tests of the worker alone."""

import sys
from pathlib import Path

from macmesh_daemon.worker import main
from macmesh_daemon.worker.parts import Parts

sys.path.insert(0, str(Path(__file__).parents[2]))


def parts() -> Parts:
    from support.engine_stand_ins import stand_in_parts  # noqa: PLC0415  imports mlx

    return stand_in_parts()


if __name__ == "__main__":
    sys.argv[0] = "macmesh-worker"
    main.main(parts=parts)
