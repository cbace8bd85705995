"""The tree of errors, the reasons, and their way over the wire."""

import inspect
import re
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs exist
from hypothesis import given
from hypothesis import strategies as st

import macmesh
from macmesh import errors, reasons
from macmesh.reasons import CODE_OF_REASON, Reason
from macmesh.wire_errors import read_failure, wire_failure

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def test_the_docstring_prints_the_whole_tree() -> None:
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.MacmeshError)
    }
    printed = re.findall(r"^(\s+(?:│   )?(?:[├└]── )?)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert sorted(name for _, name in printed) == sorted(classes)
    parents: dict[int, str] = {}
    for indent, name in printed:
        depth = len(indent.replace("    MacmeshError", "")) // 4
        parents[depth] = name
        if name != "MacmeshError":
            assert parents[depth - 1] in {b.__name__ for b in classes[name].__bases__}


def test_every_reason_is_upper_snake_and_has_a_code_and_a_comment() -> None:
    source = inspect.getsource(reasons)
    for reason in Reason:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", reason)
        assert reason == reason.name
        assert CODE_OF_REASON[reason] in grpc.StatusCode.__members__
        assert re.search(rf"    #: [^\n]+\n    {reason} = ", source), f"{reason} has no comment"
    assert set(CODE_OF_REASON) == set(Reason)


@given(st.sampled_from(Reason), TEXT, st.dictionaries(TEXT, TEXT, max_size=4))
def test_a_failure_survives_the_wire(reason: Reason, message: str, metadata: dict[str, str]) -> None:
    failure = wire_failure(reason, message, metadata)
    back = read_failure(failure.code, failure.message, failure.trailing_metadata)
    assert back == failure
    assert failure.code.name == CODE_OF_REASON[reason]


def test_long_texts_are_cut() -> None:
    failure = wire_failure(Reason.INTERNAL, "x" * 10_000, {"a": "y" * 10_000})
    assert len(failure.message) == len(failure.metadata["a"]) == 2000
    assert failure.message.endswith("…")


@pytest.mark.parametrize(
    "trailing",
    [
        None,
        (),
        (("other", "x"),),
        (("grpc-status-details-bin", b"\xff\xff\xff"),),
        (("grpc-status-details-bin", b""),),
    ],
)
def test_a_status_without_errorinfo_reads_as_none(trailing: Any) -> None:
    assert read_failure(grpc.StatusCode.INTERNAL, "m", trailing) is None


def test_foreign_domains_are_not_ours() -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="X", domain="example.com"))
    raw = status_pb2.Status(code=13, details=[detail]).SerializeToString()
    assert read_failure(grpc.StatusCode.INTERNAL, "m", (("grpc-status-details-bin", raw),)) is None


def test_the_package_exports_what_it_lists() -> None:
    for name in macmesh.__all__:
        assert getattr(macmesh, name) is not None
    assert dir(macmesh) == sorted(macmesh.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = macmesh.nothing
