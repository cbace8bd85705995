import importlib
import sys
import types
from collections.abc import Iterator

import mlx.core as mx
import pytest

from macmesh_rdma import native
from macmesh_rdma.errors import LocalTransportError, LocalVersionError


@pytest.fixture
def no_group_module() -> Iterator[None]:
    kept = sys.modules.pop(native.MODULE, None)
    yield
    sys.modules.pop(native.MODULE, None)
    if kept is not None:
        sys.modules[native.MODULE] = kept


def test_loads_against_the_version_it_was_built_for() -> None:
    module = native.load_group()
    assert native.installed_mlx_version() == module.MLX_VERSION
    assert module.MeshGroup.__name__ == "MeshGroup"


@pytest.mark.usefixtures("no_group_module")
def test_another_version_is_refused_and_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType(native.MODULE)
    fake.MLX_VERSION = "0.31.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, native.MODULE, fake)
    with pytest.raises(LocalVersionError) as caught:
        native.load_group()
    text = str(caught.value)
    assert "0.31.9" in text
    assert native.installed_mlx_version() in text
    assert "remain usable" in text
    assert isinstance(caught.value, LocalTransportError)
    # And they are.
    assert mx.distributed.init().size() == 1


@pytest.mark.parametrize("text", ["no such file", "undefined symbol: _ZN3mlx4core"])
def test_a_module_that_is_missing_or_does_not_load_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    real = importlib.import_module

    def importing(name: str) -> types.ModuleType:
        if name == native.MODULE:
            raise ImportError(text)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", importing)
    with pytest.raises(LocalVersionError, match=text) as caught:
        native.load_group()
    assert native.installed_mlx_version() in str(caught.value)
    assert "remain usable" in str(caught.value)


def test_without_mlx_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(LocalVersionError, match="need MLX"):
        native.load_group()
