"""Imports mlx-lm without the tokenisers and the download client that a worker never uses.

mlx-lm imports transformers and huggingface_hub wherever it is imported: 3 of 3.5 seconds and half of the
memory of a worker that has not loaded anything yet (measured: 3.4 s and 78 MB against 0.6 s and 38 MB). A
worker is given token ids and a folder. So both packages are replaced by placeholders in its process, which
refuse to be used.
"""

import sys
import types
from typing import Any, NoReturn

ABSENT = ("transformers", "transformers.tokenization_utils_base", "huggingface_hub")


class AbsentPackageError(ImportError):
    """Something used a package that a worker does without."""


class _Absent(types.ModuleType):
    """A package of which every name can be imported and none used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__

        def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise AbsentPackageError(f"{package}.{name} is not there in a worker, which needs no tokenizer")

        # mlx-lm registers its own tokenizers while it is imported.
        return type(name, (), {"__init__": refuse, "register": staticmethod(lambda *_, **__: None)})


def import_without_tokenizers() -> None:
    """Puts the placeholders in place; call it before mlx-lm is imported. A package imported already stays."""
    there = sys.modules.keys() & {name.partition(".")[0] for name in ABSENT}
    for name in ABSENT:
        if name.partition(".")[0] not in there:
            module = _Absent(name)
            module.__path__ = []
            sys.modules[name] = module
