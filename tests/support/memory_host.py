"""A host lane in memory, for stages that run as threads of one process."""

import queue
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from macmesh_rdma.errors import RemoteMismatchError, RemotePeerLostError, RemoteTimeoutError

_Parcel = list[tuple[tuple[int, ...], mx.Dtype, bytes]]


class MemoryHost:
    """One rank of a group in memory; made by `memory_hosts`."""

    def __init__(self, rank: int, links: "dict[tuple[str, int, int], queue.Queue[Any]]") -> None:
        self._rank, self._links = rank, links

    def send(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        parcel = [(tuple(array.shape), array.dtype, bytes(memoryview(_bytes_of(array)))) for array in arrays]  # type: ignore[arg-type]
        self._put("arrays", peer, parcel, timeout_seconds)

    def receive(self, peer: int, timeout_seconds: float) -> list[mx.array]:
        arrays = []
        for shape, dtype, raw in self._get("arrays", peer, timeout_seconds):
            flat = mx.array(memoryview(raw))  # type: ignore[arg-type]  # the stub omits the buffer protocol
            arrays.append(mx.view(flat, dtype).reshape(shape))
        mx.eval(arrays)
        return arrays

    def receive_into(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float) -> None:
        parcel: _Parcel = self._get("arrays", peer, timeout_seconds)
        if [(tuple(array.shape), array.dtype) for array in arrays] != [part[:2] for part in parcel]:
            raise RemoteMismatchError("the arrays are not those that were sent")
        for array, (_, _, raw) in zip(arrays, parcel, strict=True):
            memory = memoryview(_bytes_of(array))  # type: ignore[arg-type]  # the stub omits the buffer protocol
            memory[:] = raw

    def send_message(self, peer: int, data: bytes, timeout_seconds: float) -> None:
        self._put("message", peer, data, timeout_seconds)

    def receive_message(self, peer: int, timeout_seconds: float | None) -> bytes:
        message: bytes = self._get("message", peer, timeout_seconds)
        return message

    def close(self) -> None:
        """All that wait for this rank find it gone."""
        for (_, source, _), link in self._links.items():
            if source == self._rank:
                link.put(None)

    def _put(self, kind: str, peer: int, what: Any, timeout_seconds: float) -> None:
        self._links[kind, self._rank, peer].put(what, timeout=timeout_seconds)

    def _get(self, kind: str, peer: int, timeout_seconds: float | None) -> Any:
        try:
            what = self._links[kind, peer, self._rank].get(timeout=timeout_seconds)
        except queue.Empty:
            raise RemoteTimeoutError(f"rank {peer} sent nothing for {timeout_seconds} s") from None
        if what is None:
            raise RemotePeerLostError(f"rank {peer} has gone")
        return what


def memory_hosts(size: int) -> list[MemoryHost]:
    """The ranks of a group."""
    links: dict[tuple[str, int, int], queue.Queue[Any]] = {
        (kind, source, target): queue.Queue()
        for kind in ("arrays", "message")
        for source in range(size)
        for target in range(size)
        if source != target
    }
    return [MemoryHost(rank, links) for rank in range(size)]


def _bytes_of(array: mx.array) -> mx.array:
    """The array's own memory."""
    flat = mx.view(array.reshape(-1), mx.uint8)
    mx.eval(flat)
    return flat
