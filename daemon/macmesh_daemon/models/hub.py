"""Reads a model on a hub: its config, its index and the headers of its weight files, never the weights.

What is read is laid out as a model folder whose weight files are stand-ins: the header as it is, and after it
a hole of the size that the hub tells for the file. A hole takes no room on the disk (APFS and every file
system of Linux keep files sparse). So all that reads model folders reads a hub's model too: the same checks,
the same digest, and mlx-lm's own loader, which sees the shapes and dtypes that `mx.load` makes of the headers
and evaluates nothing. The folder is private and removed afterwards; nobody can take it for a model.
"""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from macmesh_daemon.models.errors import (
    LocalModelFolderError,
    LocalModelNotFoundError,
    LocalOfflineError,
    ModelError,
    RemoteHubUnavailableError,
    RemoteModelBrokenError,
    RemoteModelGatedError,
    RemoteModelNotFoundError,
)
from macmesh_daemon.models.folder import (
    CONFIG_NAME,
    INDEX_NAME,
    WEIGHTS_PATTERN,
    ModelFolder,
    is_hub_id,
    read_folder,
)
from macmesh_daemon.models.safetensors import MAX_HEADER_BYTES

#: What mlx-lm reads beside the config to learn how weights are quantised.
_SIDE_FILES = (INDEX_NAME, "hf_quant_config.json")
_MAX_JSON_BYTES = 100_000_000
_REQUESTS_AT_ONCE = 8
#: The field that a safetensors file begins with: the length of its header.
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Hub:
    """Where models come from, and how long to wait for it.

    Attributes:
        endpoint: Address of the hub; None for that of ``HF_ENDPOINT``, or Hugging Face's own.
        request_timeout_seconds: Longest silence within one request.
        deadline_seconds: Longest time for all requests of one model together.
    """

    endpoint: str | None = None
    request_timeout_seconds: float = 10.0
    deadline_seconds: float = 120.0


def read_hub(model: str, path: Path, *, revision: str | None = None, hub: Hub | None = None) -> ModelFolder:
    """Lays a model on a hub out as a folder of stand-ins. Blocks on the network.

    Args:
        model: ``organisation/model``.
        path: An empty folder of the caller's, which the caller removes when it is done with the model.
        revision: Branch, tag or commit; None for the main branch. All is read from the commit that it names
            at the time.
        hub: Where to ask; None for the default hub.

    Raises:
        LocalModelNotFoundError: The name is none of a hub.
        LocalModelFolderError: The stand-ins cannot be written.
        LocalOfflineError: The hub client was told to stay offline.
        RemoteModelNotFoundError: The hub has no such model, or no such revision of it.
        RemoteModelGatedError: It wants a token, or one with more rights.
        RemoteModelBrokenError: There are no safetensors weights, or a file contradicts itself.
        RemoteHubUnavailableError: The hub cannot be reached, fails, or is too slow.
    """
    client = HubClient(model, hub or Hub())
    with client.errors_told():
        client.read_into(path, revision)
    try:
        return read_folder(path, model_id=model)
    except LocalModelFolderError as problem:
        text = str(problem).replace(str(path.resolve()), client.name)
        raise RemoteModelBrokenError(text) from problem


@dataclass(frozen=True, slots=True)
class HubListing:
    """What a hub says of a model's files.

    Attributes:
        commit: That it says it of.
        files: Names of all files.
        sha256: SHA-256, hex, of whole files, where the hub states it.
    """

    commit: str
    files: tuple[str, ...]
    sha256: dict[str, str]


class HubClient:
    """The requests for one model. Blocks on the network; use `errors_told` around calls.

    Args:
        model: ``organisation/model``.
        hub: Where to ask. Its deadline counts from here.
        commit: What to read; empty until `list_files` or `read_into` has found it.

    Raises:
        LocalModelNotFoundError: The name is none of a hub.
    """

    def __init__(self, model: str, hub: Hub, commit: str = "") -> None:
        if not is_hub_id(model):
            raise LocalModelNotFoundError(f"{model!r} names no model on a hub: give organisation/model")
        self.model = model
        self.name = model
        self._hub = hub
        self._api = HfApi(endpoint=hub.endpoint)
        self._commit = commit
        self._ends = time.monotonic() + hub.deadline_seconds

    def list_files(self, revision: str | None) -> HubListing:
        """The files at a revision; what is read afterwards is of the commit that it names now."""
        if revision:
            self.name = f"{self.model} at {revision}"
        info = self._api.model_info(
            self.model, revision=revision, timeout=self._timeout(), files_metadata=True
        )
        self._commit = str(info.sha)
        siblings = info.siblings or ()
        return HubListing(
            commit=self._commit,
            files=tuple(sibling.rfilename for sibling in siblings),
            sha256={s.rfilename: str(s.lfs.sha256) for s in siblings if s.lfs is not None},
        )

    def read_small(self, name: str, most_bytes: int) -> bytes:
        """A whole file."""
        return self._bytes(name, None, most_bytes)[0]

    def read_head(self, name: str) -> tuple[bytes, int]:
        """What comes before the data in a safetensors file, and the size of the whole file."""
        prefix, size = self._bytes(name, (0, _LENGTH_BYTES), _LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < _LENGTH_BYTES or length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise RemoteModelBrokenError(
                f"{self.name}/{name} is truncated or no safetensors file ({size} bytes)"
            )
        header, _ = self._bytes(name, (_LENGTH_BYTES, length), length)
        return prefix + header, size

    def read_range(self, name: str, begin: int, size: int) -> bytes:
        """Bytes of a file."""
        return self._bytes(name, (begin, size), size)[0]

    def read_into(self, path: Path, revision: str | None) -> None:
        """Fills a folder with the small files, and stand-ins for the weights."""
        if revision:
            self.name = f"{self.model} at {revision}"
        info = self._api.model_info(
            self.model, revision=revision, timeout=self._timeout(), files_metadata=False
        )
        self._commit = str(info.sha)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        weights = sorted(name for name in names if "/" not in name and fnmatchcase(name, WEIGHTS_PATTERN))
        if CONFIG_NAME not in names:
            raise RemoteModelBrokenError(f"{self.name} has no {CONFIG_NAME}: it is no model's repository")
        if not weights:
            raise RemoteModelBrokenError(
                f"{self.name} holds no safetensors weights: no file matches {WEIGHTS_PATTERN}"
            )
        small = [name for name in (CONFIG_NAME, *_SIDE_FILES) if name in names]
        tasks = [partial(self._json, name, path) for name in small]
        tasks += [partial(self._stand_in, name, path) for name in weights]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="hub") as pool:
            running = [pool.submit(task) for task in tasks]
            try:
                for task in running:
                    task.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _json(self, name: str, path: Path) -> None:
        (path / name).write_bytes(self._bytes(name, None, _MAX_JSON_BYTES)[0])

    def _stand_in(self, name: str, path: Path) -> None:
        """Writes a file that has a remote one's header and size."""
        head, size = self.read_head(name)
        with (path / name).open("wb") as file:
            file.write(head)
            file.truncate(size)

    def _bytes(self, name: str, part: tuple[int, int] | None, limit: int) -> tuple[bytes, int]:
        """A file or a part of it, given by its first byte and its length, and the size of the whole file."""
        if part is not None and not part[1]:
            return b"", 0
        url = hf_hub_url(self.model, name, revision=self._commit, endpoint=self._hub.endpoint)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if part is not None:
            headers["Range"] = f"bytes={part[0]}-{part[0] + part[1] - 1}"
        content = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=self._timeout()) as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            size = self._whole_size(name, response, part)
            for chunk in response.iter_raw():
                self._timeout()
                content += chunk
                if len(content) > limit:
                    raise RemoteModelBrokenError(f"the hub sends more of {self.name}/{name} than asked for")
        if part is not None and len(content) != min(part[1], size - part[0]):
            raise RemoteHubUnavailableError(f"the hub sent only {len(content)} bytes of {self.name}/{name}")
        return bytes(content), size

    def _whole_size(self, name: str, response: httpx2.Response, part: tuple[int, int] | None) -> int:
        if part is None:
            return 0
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code != httpx2.codes.PARTIAL_CONTENT or not total.isdigit():
            raise RemoteHubUnavailableError(
                f"the hub does not serve parts of {self.name}/{name}, and macmesh will not fetch it whole"
            )
        return int(total)

    def _timeout(self) -> float:
        """Seconds that a request may take to be answered."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise RemoteHubUnavailableError(
                f"the headers of {self.name} took more than {self._hub.deadline_seconds:g} s"
            )
        return min(left, self._hub.request_timeout_seconds)

    @contextmanager
    def errors_told(self) -> Iterator[None]:
        """Turns the hub client's errors into ours."""
        try:
            yield
        except ModelError:
            raise
        except (HfHubHTTPError, EntryNotFoundError) as problem:
            raise self._answer_told(problem) from problem
        except HFValidationError as problem:
            raise LocalModelNotFoundError(f"{self.model!r} names no model on a hub: {problem}") from problem
        except OfflineModeIsEnabled as problem:
            raise LocalOfflineError(
                f"{self.model} is not read from a hub: HF_HUB_OFFLINE is set; unset it, or give a folder"
            ) from problem
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise RemoteHubUnavailableError(
                f"{self._api.endpoint} cannot be reached for {self.name}: {type(problem).__name__}: {problem}"
            ) from problem
        except OSError as problem:
            raise LocalModelFolderError(
                f"the headers of {self.name} cannot be written to {tempfile.gettempdir()}: {problem}"
            ) from problem

    def _answer_told(self, problem: Exception) -> ModelError:
        """Our error for an answer of the hub that is one."""
        where = self._api.endpoint
        if isinstance(problem, GatedRepoError):
            return RemoteModelGatedError(
                f"{self.model} is gated: accept its terms at {where}/{self.model}, and set HF_TOKEN"
            )
        if isinstance(problem, RevisionNotFoundError):
            return RemoteModelNotFoundError(f"{where} has no {self.name}")
        if isinstance(problem, RepositoryNotFoundError):
            return RemoteModelNotFoundError(
                f"{where} has no model {self.model!r}, or shows it only to those with a token (HF_TOKEN)"
            )
        if isinstance(problem, EntryNotFoundError):
            return RemoteModelBrokenError(f"{self.name} lists a file that is not there: {problem}")
        assert isinstance(problem, HfHubHTTPError)  # noqa: S101  the caller's other case
        status = problem.response.status_code
        if status in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
            return RemoteModelGatedError(
                f"{where} refuses {self.model} ({status}): set HF_TOKEN to a token that may read it"
            )
        return RemoteHubUnavailableError(f"{where} answers {status} for {self.name}")
