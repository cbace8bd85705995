"""Loads the scripts of bench/ as modules: the folder is on no path, for its names are those of packages."""

import sys
from importlib import util
from pathlib import Path
from types import ModuleType

BENCH = Path(__file__).parents[1] / "bench"


def load_script(name: str) -> ModuleType:
    """The script of that name, loaded once, as ``bench_<name>``; what it imports from its folder is found."""
    known = f"bench_{name}"
    if known in sys.modules:
        return sys.modules[known]
    spec = util.spec_from_file_location(known, BENCH / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{BENCH / name}.py cannot be loaded")
    module = util.module_from_spec(spec)
    sys.modules[known] = module  # its dataclasses look it up
    sys.path.insert(0, str(BENCH))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module
