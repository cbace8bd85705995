"""A hub on the loopback for tests: serves model folders by the parts of Hugging Face's HTTP that clients use.

It answers over real sockets: the list of a model's files, ``HEAD`` and ``GET`` of a file, whole or in ranges,
and the errors of a hub, with the headers by which clients tell them apart. It counts what it serves.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_CHUNK_BYTES = 1 << 20
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/?]+))?/?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, slots=True)
class Served:
    """One answer: what was asked for, and how it was answered."""

    method: str
    path: str
    range: str
    status: int
    body_bytes: int


@dataclass(slots=True)
class FakeHub:
    """A hub.

    Attributes:
        models: Folder of each model, by its name on the hub.
        revisions: Branches and tags of every model, beside the commit.
        gated: Models that only who sends `token` may read.
        token: What opens them.
        ignores_ranges: Answer every ``GET`` with the whole file.
        fails: Answer everything with this status.
        silent: Take requests and never answer them.
        endpoint: Its address, while it runs.
        served: All answers so far.
    """

    models: Mapping[str, Path]
    revisions: tuple[str, ...] = ("main",)
    gated: frozenset[str] = frozenset()
    token: str = "open-sesame"  # noqa: S105  a fake's
    ignores_ranges: bool = False
    fails: int = 0
    silent: bool = False
    endpoint: str = ""
    served: list[Served] = field(default_factory=list)

    @property
    def served_bytes(self) -> int:
        """Bytes of files that were sent, without the lists of files."""
        return sum(answer.body_bytes for answer in self.served if "/resolve/" in answer.path)

    def commit(self, model: str) -> str:
        """The commit of a model: made of its name."""
        return hashlib.sha1(model.encode(), usedforsecurity=False).hexdigest()

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        """Serves for as long as the context lasts."""
        server = _Server(self)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake hub"
        )
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.close_connections()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, hub: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: set[socket.socket] = set()
        self.closing = threading.Event()

    def close_connections(self) -> None:
        """Ends what clients keep open, so that every thread comes to its end."""
        self.closing.set()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was first


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_args: Any) -> None:
        """Says nothing: `FakeHub.served` is the log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        if hub.silent:
            self.server.closing.wait()
            self.close_connection = True
        elif hub.fails:
            self._send(hub.fails, b"", {})
        elif found := _FILE.fullmatch(path):
            self._file(*found.groups())
        elif found := _API.fullmatch(path):
            self._list(found[1], found[2] or "main", tree="/tree/" in path)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", {})

    def _missing(self, model: str, revision: str) -> str:
        """The code of what is not there; empty where all is."""
        hub = self.server.hub
        if model not in hub.models:
            return "RepoNotFound"
        return "" if revision in {*hub.revisions, hub.commit(model)} else "RevisionNotFound"

    def _list(self, model: str, revision: str, *, tree: bool) -> None:
        hub = self.server.hub
        if code := self._missing(model, revision):
            self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": code})
            return
        folder = hub.models[model]
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        content: Any
        if tree:
            content = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in files.items()
            ]
        else:
            siblings = [_sibling(name, path) for name, path in files.items()]
            content = {"id": model, "modelId": model, "sha": hub.commit(model), "siblings": siblings}
        self._send(HTTPStatus.OK, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, model: str, revision: str, name: str) -> None:
        hub = self.server.hub
        code = self._missing(model, revision)
        if code:
            self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": code})
        elif model in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            known = "Authorization" in self.headers
            status = HTTPStatus.FORBIDDEN if known else HTTPStatus.UNAUTHORIZED
            self._send(status, b"", {"X-Error-Code": "GatedRepo"})
        elif not (hub.models[model] / name).is_file():
            self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._content(hub.models[model] / name, hub.commit(model))

    def _content(self, path: Path, commit: str) -> None:
        size = path.stat().st_size
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None or self.server.hub.ignores_ranges:
            self._stream(HTTPStatus.OK, path, 0, size, headers)
            return
        begin = int(wanted[1])
        end = min(size, int(wanted[2]) + 1 if wanted[2] else size)
        if begin >= size:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", {"Content-Range": f"bytes */{size}"})
            return
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._stream(HTTPStatus.PARTIAL_CONTENT, path, begin, end, headers)

    def _stream(self, status: int, path: Path, begin: int, end: int, headers: dict[str, str]) -> None:
        sent = 0
        self._head(status, end - begin, headers)
        try:
            with path.open("rb") as file:
                file.seek(begin)
                while self.command != "HEAD" and sent < end - begin:
                    chunk = file.read(min(_CHUNK_BYTES, end - begin - sent))
                    self.wfile.write(chunk)
                    sent += len(chunk)
        except OSError:
            self.close_connection = True  # the client has left
        self._note(status, sent)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._note(status, 0 if self.command == "HEAD" else len(body))
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _note(self, status: int, body_bytes: int) -> None:
        served = Served(self.command, self.path, self.headers.get("Range", ""), status, body_bytes)
        self.server.hub.served.append(served)


def _sibling(name: str, path: Path) -> dict[str, Any]:
    """A file of the list: large ones are stored aside, under their SHA-256."""
    size = path.stat().st_size
    told: dict[str, Any] = {"rfilename": name, "size": size}
    if name.endswith(".safetensors"):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        told["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
    return told


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
