"""The store of partial models: a folder with one folder for each model, named by its digest.

Blocks on the disk: call it in a thread from asyncio.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from macmesh_daemon.files import make_durable, write_durably
from macmesh_daemon.models.errors import LocalModelError
from macmesh_daemon.models.folder import ModelFolder, read_folder
from macmesh_daemon.weights.errors import (
    LocalNoSpaceError,
    LocalWeightsStoreError,
    RemoteContentDiffersError,
    WeightsError,
)
from macmesh_daemon.weights.partial import ABOUT_NAME, About, PartialModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = re.compile(r"[A-Za-z0-9_][\w.+-]{0,200}")
_NEW: Final = ".new-"
#: What of a model folder travels beside the weights. Code never does.
SMALL_SUFFIXES: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
#: A tokenizer of a million entries has 40 MB; more is not a small file.
MAX_SMALL_BYTES: Final = 128 << 20
#: The disk is never filled up to the last byte: the system and the logs need room.
KEPT_FREE_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A weight file of which only the header is here.

    Attributes:
        head: Its first bytes: the length of the header, and the header.
        size_bytes: Length of the whole file.
    """

    head: bytes
    size_bytes: int


def is_digest(text: str) -> bool:
    """Whether a text has the form of a model's digest."""
    return _DIGEST.fullmatch(text) is not None


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file directly in a folder, and of none of ours."""
    return _FILE.fullmatch(name) is not None and not name.startswith("macmesh-weights.")


def is_small_name(name: str) -> bool:
    """Whether a file of that name belongs to what travels beside the weights."""
    return is_plain_name(name) and name.endswith(SMALL_SUFFIXES)


class ModelStore:
    """Makes and finds partial models.

    Args:
        folder: Made when the first model is laid out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, PartialModel] = {}
        self._lock = threading.Lock()
        for left in self._leftovers():
            shutil.rmtree(left, ignore_errors=True)  # a crash left it half laid out

    def open(self, digest: str) -> PartialModel | None:
        """The partial model with that digest; None where there is none.

        Raises:
            LocalWeightsStoreError: there is one that cannot be read.
        """
        if not is_digest(digest):
            return None
        with self._lock:
            if digest not in self._open and (self.folder / digest / ABOUT_NAME).is_file():
                self._open[digest] = PartialModel(self.folder / digest)
            return self._open.get(digest)

    def named(self, name: str) -> str:
        """The digest of the model that was asked for by that name; empty where there is none.

        Of several, the one that was laid out last: a name may have been given to newer content.
        """
        found: list[tuple[float, str]] = []
        for digest in self.digests():
            try:
                about = About.read(self.folder / digest)
                if name in about.names:
                    found.append(((self.folder / digest).stat().st_ctime, digest))
            except (OSError, WeightsError):
                continue  # a broken one is told when it is opened by its digest
        return max(found)[1] if found else ""

    def digests(self) -> list[str]:
        """The digests of all partial models."""
        try:
            return sorted(entry.name for entry in self.folder.iterdir() if is_digest(entry.name))
        except FileNotFoundError:
            return []

    def lay_out(
        self, about: About, small: Mapping[str, bytes], weights: Mapping[str, LaidOut]
    ) -> PartialModel:
        """Make the folder of a model of which no weights are here yet; the one that is there where it is.

        Args:
            about: What it says of itself; an empty digest takes whatever the files have.
            small: Its config, index, tokenizer and so on, by name.
            weights: Its weight files, by name.

        Raises:
            RemoteContentDiffersError: the files are no model, or another one than the digest says.
            LocalWeightsStoreError: they cannot be written.
        """
        names = [*small, *weights]
        if bad := [name for name in names if not is_plain_name(name)]:
            raise RemoteContentDiffersError(f"a model has no file {bad[0]!r}")
        new = self.folder / f"{_NEW}{secrets.token_hex(6)}"
        try:
            new.mkdir(parents=True, mode=0o700)
            folder = self._filled(new, about.digest, small, weights)
            about = replace(about, digest=folder.digest)
            write_durably(new / ABOUT_NAME, about.to_json_text().encode(), mode=0o644)
            make_durable(new)
            with self._lock:
                target = self.folder / about.digest
                if not target.exists():
                    new.rename(target)
                    make_durable(self.folder)
        except OSError as problem:
            raise LocalWeightsStoreError(f"{new} cannot be laid out: {problem}") from problem
        finally:
            shutil.rmtree(new, ignore_errors=True)
        model = self.open(about.digest)
        if model is None:
            raise LocalWeightsStoreError(f"{self.folder / about.digest} is no partial model: remove it")
        return model

    def require_room(self, needed_bytes: int) -> None:
        """Let a fetch of so many bytes pass.

        Raises:
            LocalNoSpaceError: they would leave less than `KEPT_FREE_BYTES`; the message has the figures.
        """
        place = self.folder
        while not place.exists():
            place = place.parent
        found = os.statvfs(place)
        free = found.f_bavail * found.f_frsize
        if needed_bytes > free - KEPT_FREE_BYTES:
            raise LocalNoSpaceError(
                f"{needed_bytes} bytes of weights are to be fetched, and {place} has {free} bytes free, of which "
                f"{KEPT_FREE_BYTES} stay free: make room, or set weights_folder to a larger disk"
            )

    @staticmethod
    def _filled(
        new: Path, digest: str, small: Mapping[str, bytes], weights: Mapping[str, LaidOut]
    ) -> ModelFolder:
        for name, content in small.items():
            (new / name).write_bytes(content)
            make_durable(new / name)
        for name, file in weights.items():
            with (new / name).open("wb") as stream:
                stream.write(file.head)
                stream.truncate(file.size_bytes)
            make_durable(new / name)
        try:
            folder = read_folder(new)
        except LocalModelError as problem:
            text = str(problem).replace(str(new.resolve()), "the model")
            raise RemoteContentDiffersError(f"what was fetched is no model: {text}") from problem
        if digest and folder.digest != digest:
            raise RemoteContentDiffersError(
                f"config, index and headers are those of {folder.digest[:12]}, not of {digest[:12]}"
            )
        return folder

    def _leftovers(self) -> Iterable[Path]:
        try:
            return [entry for entry in self.folder.iterdir() if entry.name.startswith(_NEW)]
        except FileNotFoundError:
            return []
