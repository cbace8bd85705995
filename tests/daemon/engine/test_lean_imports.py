import sys

import pytest

from macmesh_daemon.engine.lean_imports import ABSENT, AbsentPackageError, import_without_tokenizers


def test_placeholders_can_be_imported_but_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ABSENT:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import_without_tokenizers()
    placed = {name: sys.modules.pop(name) for name in ABSENT}
    tokenizer = placed["transformers"].AutoTokenizer
    tokenizer.register("anything", object)
    with pytest.raises(AbsentPackageError, match=r"transformers\.AutoTokenizer"):
        tokenizer()
    with pytest.raises(AttributeError):
        _ = placed["huggingface_hub"].__version__


def test_packages_that_are_imported_already_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", sys)
    import_without_tokenizers()
    assert sys.modules["transformers"] is sys
