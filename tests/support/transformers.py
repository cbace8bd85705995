"""Importing transformers takes seconds in each process that tests run in, and few of them need it."""

import importlib
import sys
from types import ModuleType

import huggingface_hub  # noqa: F401  itself: what is there already is not replaced

from macmesh_daemon.engine.lean_imports import import_without_tokenizers

_NAME = "transformers"


def leave_transformers_out() -> None:
    """Lets mlx-lm be imported without it."""
    import_without_tokenizers()


def bring_transformers_in() -> ModuleType:
    """Imports it, also for mlx-lm where that has been imported without it."""
    if getattr(sys.modules.get(_NAME), "__file__", None) is None:
        for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
            del sys.modules[name]
    transformers = importlib.import_module(_NAME)
    tokenizers = sys.modules.get("mlx_lm.tokenizer_utils")
    if (
        tokenizers is not None
        and getattr(tokenizers, "AutoTokenizer", None) is not transformers.AutoTokenizer
    ):
        importlib.reload(tokenizers)
    return transformers
