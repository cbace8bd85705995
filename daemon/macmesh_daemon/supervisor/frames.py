"""Frames: a 4-byte big-endian length and a protobuf message of that many bytes.

Used on the control lane between workers.
"""

import asyncio
import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from macmesh_daemon.supervisor.errors import RemoteFrameError

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""No message comes near this: a prompt of 200,000 tokens is under 1 MB. A longer one is garbage."""

MessageT = TypeVar("MessageT", bound=Message)


def encode_frame(message: Message) -> bytes:
    """The bytes of one frame.

    Raises:
        ValueError: the message is longer than `MAX_FRAME_BYTES`.
    """
    body = message.SerializeToString()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(
            f"a {type(message).__name__} of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}"
        )
    return LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, kind: type[MessageT]) -> MessageT | None:
    """The next message, or None where the other side has closed between two messages.

    Sets no deadline: silence between messages is normal on these connections.

    Raises:
        RemoteFrameError: the stream ends inside a frame, or a frame is no message of this kind.
    """
    try:
        head = await reader.readexactly(LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise RemoteFrameError("the connection ended inside a frame's length") from error
    (length,) = LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise RemoteFrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    try:
        return kind.FromString(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        raise RemoteFrameError(f"the connection ended inside a frame of {length} bytes") from error
    except DecodeError as error:
        raise RemoteFrameError(f"a frame of {length} bytes is no {kind.__name__}") from error
