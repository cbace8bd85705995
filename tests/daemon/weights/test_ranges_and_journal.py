"""Sets of bytes, and the journal that says which are there."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.weights.errors import (
    LocalNoSpaceError,
    LocalWeightsMissingError,
    LocalWeightsStoreError,
    RemoteContentDiffersError,
)
from macmesh_daemon.weights.partial import (
    JOURNAL_NAME,
    About,
    PartialModel,
    is_partial,
    read_held,
    require_held,
)
from macmesh_daemon.weights.pieces import PIECE_BYTES, Piece, cut, pieces_of
from macmesh_daemon.weights.ranges import RangeSet
from macmesh_daemon.weights.store import LaidOut, ModelStore, is_small_name
from macmesh_daemon.weights.tensor_map import TensorMap
from support.models import copy_model

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh_daemon.models import ModelFolder

RANGE = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(RANGE, max_size=12), RANGE)
def test_a_range_set_is_a_set_of_bytes(ranges: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    held = RangeSet(ranges)
    plain = {byte for begin, end in ranges for byte in range(begin, end)}
    assert held.size_bytes == len(plain)
    assert held.covers(*asked) == plain.issuperset(range(*asked))
    flat = [edge for pair in held for edge in pair]
    assert flat == sorted(set(flat)), "ranges touch or overlap"
    assert len(held) == len(list(held))


@given(st.integers(0, 1000), st.integers(0, 5 * PIECE_BYTES))
def test_pieces_cover_their_range_without_gap(begin: int, size: int) -> None:
    pieces = cut("f", begin, begin + size)
    assert sum(piece.size_bytes for piece in pieces) == size
    assert all(0 < piece.size_bytes <= PIECE_BYTES for piece in pieces)
    edges = [begin, *(piece.end for piece in pieces)]
    assert [piece.begin for piece in pieces] == edges[: len(pieces)]


def test_the_map_of_tensors_gives_each_stage_its_own() -> None:
    tensors = TensorMap(
        layers=(frozenset({"a"}), frozenset({"b"}), frozenset({"c", "s"})),
        head=frozenset({"embed"}),
        tail=frozenset({"embed", "norm"}),
        every=frozenset({"s"}),
    )
    assert tensors.needed(0, 1) == {"a", "s", "embed"}
    assert tensors.needed(1, 2) == {"b", "s"}
    assert tensors.needed(1, 3) == {"b", "c", "s", "embed", "norm"}
    assert TensorMap.from_json_text(tensors.to_json_text()) == tensors
    for first, end in ((0, 4), (2, 2), (-1, 1)):
        with pytest.raises(ValueError, match="no range"):
            tensors.needed(first, end)
    for broken in ("", "[]", "{}", '{"format": "x"}', tensors.to_json_text().replace('"a"', "1")):
        with pytest.raises(ValueError, match=r"."):
            TensorMap.from_json_text(broken)


class Model:
    """A whole model, and a store with a layout of it."""

    def __init__(self, folder: Path) -> None:
        self.whole: ModelFolder = read_folder(copy_model(folder / "whole"))
        self.store = ModelStore(folder / "store")

    def small(self) -> dict[str, bytes]:
        files = self.whole.path.iterdir()
        return {file.name: file.read_bytes() for file in files if is_small_name(file.name)}

    def heads(self) -> dict[str, LaidOut]:
        found = {}
        for name in self.whole.weight_files:
            content = (self.whole.path / name).read_bytes()
            found[name] = LaidOut(content[: 8 + int.from_bytes(content[:8], "little")], len(content))
        return found

    def lay_out(self) -> PartialModel:
        about = About(self.whole.digest, names=("tiny",))
        return self.store.lay_out(about, self.small(), self.heads())

    def content(self, piece: Piece) -> bytes:
        return (self.whole.path / piece.file).read_bytes()[piece.begin : piece.end]

    def bring(self, partial: PartialModel, pieces: list[Piece]) -> None:
        for piece in pieces:
            partial.write(piece, self.content(piece))
        partial.commit({piece: hashlib.sha256(self.content(piece)).hexdigest() for piece in pieces})


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def test_a_layout_is_a_model_folder_without_weights(model: Model) -> None:
    partial = model.lay_out()
    folder = read_folder(partial.folder)
    assert folder.digest == model.whole.digest
    assert folder.tensors == model.whole.tensors
    assert is_partial(partial.folder)
    assert not is_partial(model.whole.path)
    assert partial.held_bytes == 0
    used = sum(file.stat().st_blocks * 512 for file in partial.folder.glob("*.safetensors"))
    assert used < folder.total_bytes / 4, "the holes take room"
    assert model.store.named("tiny") == folder.digest
    assert model.store.named("other") == ""
    assert model.store.open(folder.digest) is partial
    assert model.lay_out() is partial


def test_a_load_that_would_read_a_hole_is_refused_before(model: Model) -> None:
    partial = model.lay_out()
    names = sorted(model.whole.tensors)[:3]
    with pytest.raises(LocalWeightsMissingError, match="fetches them") as refused:
        require_held(partial.folder, model.whole.tensors, names)
    first = partial.missing(model.whole.tensors, names)[0]
    assert first.file in str(refused.value)
    model.bring(partial, partial.missing(model.whole.tensors, names))
    require_held(partial.folder, model.whole.tensors, names)
    with pytest.raises(LocalWeightsMissingError):
        require_held(partial.folder, model.whole.tensors, sorted(model.whole.tensors)[:4])
    for name in names:
        tensor = model.whole.tensors[name]
        piece = Piece(tensor.file, tensor.begin, tensor.end)
        assert partial.holds(piece)
        assert (partial.folder / tensor.file).read_bytes()[tensor.begin : tensor.end] == model.content(piece)


def test_a_torn_journal_means_fetching_again_and_never_wrong_bytes(model: Model) -> None:
    partial = model.lay_out()
    pieces = list(pieces_of(model.whole.tensors, model.whole.tensors))[:4]
    for piece in pieces:
        model.bring(partial, [piece])
    journal = partial.folder / JOURNAL_NAME
    whole = journal.read_bytes()
    edges = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    around = {edge + offset for edge in edges for offset in (-1, 0, 1)}
    for cut_at in sorted({*range(0, len(whole), 23), *around} - {len(whole) + 1}):
        journal.write_bytes(whole[:cut_at])
        again = PartialModel(partial.folder)
        there = sum(edge <= cut_at for edge in edges)
        assert [again.holds(piece) for piece in pieces] == [i < there for i in range(len(pieces))]
    # What is written after a torn line counts.
    model.bring(again, [pieces[3]])
    assert PartialModel(partial.folder).holds(pieces[3])


@settings(max_examples=30)
@given(st.data())
def test_a_spoilt_journal_never_says_more(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    (folder / "macmesh-weights.json").write_text(About("0" * 64).to_json_text())
    (folder / "f").write_bytes(bytes(100))
    partial = PartialModel(folder)
    pieces = [Piece("f", begin, begin + 10) for begin in range(0, 100, 10)]
    partial.commit({piece: hashlib.sha256(b"x").hexdigest() for piece in pieces})
    content = bytearray((folder / JOURNAL_NAME).read_bytes())
    places = st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3, unique=True)
    first = len(content)
    for position in data.draw(places):
        content[position] ^= data.draw(st.integers(1, 255))
        first = min(first, position)
    (folder / JOURNAL_NAME).write_bytes(content)
    found = read_held(folder)
    assert list(found.hashes) == pieces[: content[:first].count(b"\n")]
    assert set(found.ranges) <= {"f"}


def test_a_file_can_be_forgotten(model: Model) -> None:
    partial = model.lay_out()
    pieces = list(pieces_of(model.whole.tensors, model.whole.tensors))
    files = {piece.file for piece in pieces}
    assert len(files) > 1
    model.bring(partial, pieces)
    gone = min(files)
    partial.forget(gone)
    assert {piece.file for piece in partial.missing(model.whole.tensors, model.whole.tensors)} == {gone}
    assert all(PartialModel(partial.folder).holds(p) == (p.file != gone) for p in pieces)
    assert partial.hash_of(next(p for p in pieces if p.file != gone))
    assert partial.hash_of(next(p for p in pieces if p.file == gone)) == ""


def test_what_is_no_such_model_is_not_laid_out(model: Model) -> None:
    small, heads = model.small(), model.heads()
    with pytest.raises(RemoteContentDiffersError, match="not of 0000"):
        model.store.lay_out(About("0" * 64), small, heads)
    for name in ("../evil.json", "a/b.json", ".hidden", "macmesh-weights.json"):
        with pytest.raises(RemoteContentDiffersError, match="no file"):
            model.store.lay_out(About(model.whole.digest), {**small, name: b"{}"}, heads)
    short = {name: LaidOut(file.head, file.size_bytes - 1) for name, file in heads.items()}
    with pytest.raises(RemoteContentDiffersError, match="no model"):
        model.store.lay_out(About(model.whole.digest), small, short)
    assert model.store.digests() == []
    assert list(model.store.folder.iterdir()) == []
    assert model.store.open("../whole") is None


def test_a_crash_while_laying_out_leaves_nothing(model: Model) -> None:
    model.lay_out()
    left = model.store.folder / ".new-0"
    left.mkdir()
    (left / "config.json").write_text("{}")
    again = ModelStore(model.store.folder)
    assert not left.exists()
    assert again.digests() == [model.whole.digest]


def test_a_full_disk_is_refused_with_the_figures(model: Model) -> None:
    model.store.require_room(1)
    with pytest.raises(LocalNoSpaceError, match=r"1000000000000000000 bytes .* free"):
        model.store.require_room(10**18)


def test_wrong_sizes_and_broken_notes_are_errors(model: Model) -> None:
    partial = model.lay_out()
    with pytest.raises(LocalWeightsStoreError, match="3 bytes"):
        partial.write(Piece(model.whole.weight_files[0], 0, 4), b"abc")
    about = partial.folder / "macmesh-weights.json"
    for text in ("{", "[]", json.dumps({"format": "macmesh-weights/9"})):
        about.write_text(text)
        with pytest.raises(LocalWeightsStoreError):
            PartialModel(partial.folder)
