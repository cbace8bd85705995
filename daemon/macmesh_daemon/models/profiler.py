"""Runs the profile process and keeps its profiles."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import structlog

from macmesh_daemon.models.errors import (
    LocalArchitectureError,
    LocalModelError,
    LocalModelFolderError,
    LocalProfileProcessError,
    RemoteHubUnavailableError,
)
from macmesh_daemon.models.folder import ModelFolder
from macmesh_daemon.weights.tensor_map import TensorMap
from macmesh_placement import LocalProfileError, ModelProfile
from macmesh_placement.profile import PROFILE_FORMAT

_log = structlog.get_logger(__name__)

#: The profile process, run by this interpreter. The daemon itself never imports mlx.
PROFILE_COMMAND = (sys.executable, "-m", "macmesh_daemon.engine.profile_main")

#: Seconds that a killed process may take to end.
_REAP_SECONDS = 5.0

_BY_REASON: dict[str, type[LocalModelError]] = {
    error.reason: error for error in (LocalArchitectureError, LocalModelFolderError)
}


async def profile_model(
    folder: ModelFolder,
    cache_dir: Path,
    *,
    deadline_seconds: float = 60.0,
    command: Sequence[str] = PROFILE_COMMAND,
) -> ModelProfile:
    """The profile of a model folder, from the cache or from a fresh profile process.

    Args:
        folder: The folder.
        cache_dir: Where profiles are kept, by the hash of config, index, headers and mlx-lm version; made if
            missing.
        deadline_seconds: Longest time that the process may take; then it is killed.
        command: What to run; the folder and its name are appended.

    Raises:
        LocalArchitectureError: The architecture is not supported.
        LocalModelFolderError: Config and weights do not make a model.
        LocalProfileProcessError: The process failed or was too slow; asking again may help.
    """
    path = cache_dir / f"{profile_key(folder)}.profile.json"
    kept = await asyncio.to_thread(_read_kept, path)
    if kept is not None:
        return replace(kept, model_id=folder.model_id)
    arguments = [*command, str(folder.path), "--model-id", folder.model_id]
    code, output, errors = await _run(arguments, deadline_seconds)
    if code != 0:
        raise _error_of(code, errors, folder)
    try:
        profile = ModelProfile.from_json_text(output.decode())
    except (LocalProfileError, UnicodeDecodeError) as problem:
        raise LocalProfileProcessError(
            f"the profile process printed no profile of {folder.path}: {problem}"
        ) from problem
    try:
        await asyncio.to_thread(_keep, path, profile.to_json_text())
    except OSError as problem:
        _log.warning("profile not kept", path=str(path), error=str(problem))
    return profile


async def map_tensors(
    folder: ModelFolder,
    cache_dir: Path,
    *,
    deadline_seconds: float = 60.0,
    command: Sequence[str] = PROFILE_COMMAND,
) -> TensorMap:
    """Which tensors of a folder's files each part of its model is computed from; cached as profiles are.

    Args:
        folder: The folder; of its weight files only the headers are looked at.
        cache_dir: As for `profile_model`.
        deadline_seconds: As for `profile_model`.
        command: As for `profile_model`.

    Raises:
        LocalModelError: As `profile_model`.
    """
    path = cache_dir / f"{profile_key(folder)}.tensors.json"
    with contextlib.suppress(OSError, ValueError):
        return TensorMap.from_json_text(await asyncio.to_thread(path.read_text))
    code, output, errors = await _run([*command, str(folder.path), "--tensors"], deadline_seconds)
    if code != 0:
        raise _error_of(code, errors, folder)
    try:
        found = TensorMap.from_json_text(output.decode())
    except ValueError as problem:
        raise LocalProfileProcessError(
            f"the profile process printed no map of the tensors of {folder.path}: {problem}"
        ) from problem
    try:
        await asyncio.to_thread(_keep, path, output.decode())
    except OSError as problem:
        _log.warning("map of tensors not kept", path=str(path), error=str(problem))
    return found


async def profile_hub_model(
    model: str,
    cache_dir: Path,
    *,
    revision: str | None = None,
    hub_endpoint: str | None = None,
    hub_deadline_seconds: float = 120.0,
    deadline_seconds: float = 60.0,
    command: Sequence[str] = PROFILE_COMMAND,
) -> ModelProfile:
    """The profile of a model on a hub, of which only config, index and headers are fetched.

    Args:
        model: ``organisation/model``.
        cache_dir: As for `profile_model`; the same content as a local folder shares its entry.
        revision: Branch, tag or commit; None for the main branch.
        hub_endpoint: Address of the hub; None for that of ``HF_ENDPOINT``, or Hugging Face's own.
        hub_deadline_seconds: Longest time for reading the headers.
        deadline_seconds: As for `profile_model`.
        command: As for `profile_model`.

    Raises:
        LocalModelNotFoundError: The name is none of a hub.
        LocalOfflineError: The hub client was told to stay offline.
        RemoteModelError: The hub does not have the model, does not show it, or cannot be reached.
        LocalModelError: As `profile_model`.
    """
    from macmesh_daemon.models.hub import Hub, read_hub  # noqa: PLC0415  a folder needs no hub client

    hub = Hub(endpoint=hub_endpoint, deadline_seconds=hub_deadline_seconds)
    with tempfile.TemporaryDirectory(prefix="macmesh-hub-", ignore_cleanup_errors=True) as stand_ins:
        try:
            # The client keeps the deadline itself, but for a name server or a list that trickles in.
            async with asyncio.timeout(hub_deadline_seconds + hub.request_timeout_seconds):
                folder = await asyncio.to_thread(read_hub, model, Path(stand_ins), revision=revision, hub=hub)
        except TimeoutError:
            raise RemoteHubUnavailableError(
                f"the headers of {model} took more than {hub_deadline_seconds:g} s"
            ) from None
        return await profile_model(folder, cache_dir, deadline_seconds=deadline_seconds, command=command)


def profile_key(folder: ModelFolder) -> str:
    """The name under which a profile is kept: equal for equal content under the same mlx-lm."""
    text = f"{PROFILE_FORMAT}\0{version('mlx-lm')}\0{folder.digest}"
    return hashlib.sha256(text.encode()).hexdigest()


async def _run(arguments: Sequence[str], deadline_seconds: float) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(deadline_seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        raise LocalProfileProcessError(
            f"the profile process took more than {deadline_seconds:g} s and was ended: {' '.join(arguments)}"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_SECONDS):
                    await process.wait()
    assert process.returncode is not None  # noqa: S101  communicate() has waited for it
    return process.returncode, output, errors


def _error_of(code: int, errors: bytes, folder: ModelFolder) -> LocalModelError:
    lines = errors.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    try:
        error = json.loads(last)["error"]
        return _BY_REASON.get(error["reason"], LocalProfileProcessError)(error["message"])
    except (ValueError, KeyError, TypeError):
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return LocalProfileProcessError(
            f"the profile process of {folder.path} ended with {how}: {last or 'no message'}"
        )


def _read_kept(path: Path) -> ModelProfile | None:
    """A kept profile; None where there is none that can be read (it is then made anew)."""
    try:
        return ModelProfile.from_json_text(path.read_text())
    except (OSError, UnicodeDecodeError, LocalProfileError):
        return None


def _keep(path: Path, text: str) -> None:
    """Writes the text so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
