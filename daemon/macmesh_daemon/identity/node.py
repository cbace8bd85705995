"""A node's own identity: its key, the machine it is bound to, and how often it was started."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macmesh_daemon.files import exclusive, write_durably
from macmesh_daemon.identity.errors import LocalCredentialsError
from macmesh_daemon.identity.hardware import hardware_id
from macmesh_daemon.identity.keys import new_private_key, node_id_of, private_key_from_pem, private_key_to_pem

KEY_FILE_NAME = "node.key"
IDENTITY_FILE_NAME = "identity.json"
_LOCK_NAME = "identity.lock"
REPLACED_FOLDER_PREFIX = "replaced-identity-"
_FORMAT_VERSION = 1
# Large, and the same on every machine.
_MODELS_FOLDER_NAME = "models"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this node is."""

    node_id: str
    key_pem: bytes
    #: Hash of the hardware UUID the key is bound to; empty where the machine has none.
    hardware_id: str
    #: The id found in the folder when it was made on another machine; its files were put aside. None
    #: normally.
    replaced_node_id: str | None = None

    def __repr__(self) -> str:
        return f"NodeIdentity(node_id={self.node_id!r}, replaced_node_id={self.replaced_node_id!r})"


@dataclass(frozen=True, slots=True)
class Start:
    """Tells one start of a node from its other starts, and from a clone of it."""

    #: Raised by one at each start, on disk before it is used.
    incarnation: int
    #: 64 random bits.
    boot_nonce: int


def load_or_create_identity(data_dir: Path, *, machine: str | None = None) -> NodeIdentity:
    """Return the identity kept in ``data_dir``, making one where there is none.

    A folder that was copied from another machine does not bring that machine's identity along: when the
    hardware id beside the key differs from this machine's, everything in the folder but ``models`` (key,
    certificates, cluster membership, votes) is put aside in ``replaced-identity-<old id>``, a new key is
    made, and ``replaced_node_id`` says so. Where either id is unknown the key stays.

    Args:
        data_dir: The daemon's folder; made, mode 0700, where missing.
        machine: Hardware id of this machine; read from the system by default.

    Raises:
        LocalCredentialsError: The files are there but broken.
        OSError: The folder cannot be written.
    """
    here = hardware_id() if machine is None else machine
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A daemon that starts and a command may both be first; only one of them makes the key.
    with exclusive(data_dir / _LOCK_NAME):
        return _load_or_create(data_dir, here)


def _load_or_create(data_dir: Path, here: str) -> NodeIdentity:
    key_path = data_dir / KEY_FILE_NAME
    if not key_path.exists():
        return _create(data_dir, here, replaced=None)
    key_pem = key_path.read_bytes()
    node_id = node_id_of(private_key_from_pem(key_pem, where=str(key_path)).public_key())
    bound_to = str(_read_record(data_dir).get("hardware_id", ""))
    if bound_to and here and bound_to != here:
        _put_aside(data_dir, node_id)
        return _create(data_dir, here, replaced=node_id)
    if here and not bound_to:
        _write_record(data_dir, {**_read_record(data_dir), "node_id": node_id, "hardware_id": here})
    return NodeIdentity(node_id=node_id, key_pem=key_pem, hardware_id=bound_to or here)


def begin_start(data_dir: Path) -> Start:
    """Count one more start of the node in ``data_dir`` and draw its boot nonce.

    The count is on the drive before this returns, so no two starts share an incarnation. Call it once per
    daemon start, under the folder's lock. Blocks.

    Raises:
        LocalCredentialsError: The folder holds no identity, or a broken one.
        OSError: The count cannot be written.
    """
    record = _read_record(data_dir)
    if not record:
        raise LocalCredentialsError(f"{data_dir} holds no identity yet: create it before starting")
    incarnation = int(record.get("incarnation", 0)) + 1
    _write_record(data_dir, {**record, "incarnation": incarnation})
    return Start(incarnation=incarnation, boot_nonce=secrets.randbits(64))


def _create(data_dir: Path, here: str, *, replaced: str | None) -> NodeIdentity:
    key = new_private_key()
    key_pem = private_key_to_pem(key)
    node_id = node_id_of(key.public_key())
    # The record first: a crash in between leaves no key, and the next start makes both anew.
    _write_record(data_dir, {"node_id": node_id, "hardware_id": here, "incarnation": 0})
    write_durably(data_dir / KEY_FILE_NAME, key_pem, mode=0o600)
    return NodeIdentity(node_id=node_id, key_pem=key_pem, hardware_id=here, replaced_node_id=replaced)


def _put_aside(data_dir: Path, node_id: str) -> None:
    target = data_dir / f"{REPLACED_FOLDER_PREFIX}{node_id}"
    number = 1
    while target.exists():
        number += 1
        target = data_dir / f"{REPLACED_FOLDER_PREFIX}{node_id}-{number}"
    target.mkdir(mode=0o700)
    # The key last: until it is gone, a crash leaves a folder that is put aside again.
    entries = sorted(data_dir.iterdir(), key=lambda path: path.name == KEY_FILE_NAME)
    for path in entries:
        stays = path.name.startswith(REPLACED_FOLDER_PREFIX) or path.suffix == ".lock"
        if not stays and path.name not in {IDENTITY_FILE_NAME, _MODELS_FOLDER_NAME}:
            path.replace(target / path.name)


def _read_record(data_dir: Path) -> dict[str, Any]:
    path = data_dir / IDENTITY_FILE_NAME
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LocalCredentialsError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict) or value.get("version") != _FORMAT_VERSION:
        raise LocalCredentialsError(f"{path} is not of format version {_FORMAT_VERSION}")
    if not isinstance(value.get("incarnation", 0), int):
        raise LocalCredentialsError(f"{path}: incarnation is not a whole number")
    return value


def _write_record(data_dir: Path, record: dict[str, Any]) -> None:
    text = json.dumps({**record, "version": _FORMAT_VERSION}, indent=2, sort_keys=True)
    write_durably(data_dir / IDENTITY_FILE_NAME, f"{text}\n".encode(), mode=0o600)
