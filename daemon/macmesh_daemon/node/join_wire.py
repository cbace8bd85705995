"""The join door's framing: one message each way per connection, its length in front."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from macmesh_daemon.identity import RemoteUntrustedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: A request takes about 500 bytes, an answer with the addresses of 32 nodes about 6 KiB.
MAX_JOIN_MESSAGE_BYTES = 64 * 1024
_LENGTH = struct.Struct(">I")

M = TypeVar("M", bound=Message)


async def read_message(reader: asyncio.StreamReader, kind: Callable[[], M]) -> M:
    """Read one message; the caller sets the deadline.

    Raises:
        RemoteUntrustedError: It is too long, or not such a message.
        asyncio.IncompleteReadError: The other side went away.
        OSError: The connection broke.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_JOIN_MESSAGE_BYTES:
        raise RemoteUntrustedError(f"a message of {length} bytes is longer than the join door takes")
    message = kind()
    try:
        message.ParseFromString(await reader.readexactly(length))
    except DecodeError as error:
        raise RemoteUntrustedError("what was received is no message of the join door") from error
    return message


def frame(message: Message) -> bytes:
    """A message with its length in front."""
    content = message.SerializeToString()
    return _LENGTH.pack(len(content)) + content
