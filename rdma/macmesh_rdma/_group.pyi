"""The native transport: links, and groups of MLX that run on them. Import it through `native.load_group`."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

MLX_VERSION: str
"""The version of MLX that this module was compiled against."""

class LinkOptions:
    """The knobs of the links; see `macmesh_rdma.options.LinkOptions`, which makes these."""

    def __init__(
        self,
        *,
        num_buffers: int,
        frame_bytes: int,
        buffer_sizes: int,
        max_outstanding: int,
        spin_us: float,
    ) -> None: ...

class Link:
    """A path of frames to one peer. Owned by a group once it was handed to one."""

    @property
    def provider(self) -> str: ...
    @property
    def pool_bytes(self) -> int: ...
    def abort(self) -> None: ...

def tcp_link(descriptor: int, options: LinkOptions) -> Link:
    """A link over a connected stream socket, which it takes over, also where it raises.

    Raises ValueError for wrong options, OSError for a descriptor that is no connected stream socket.
    """

def shm_bytes(options: LinkOptions) -> int:
    """Bytes of the shared memory of one direction."""

def shm_link(
    send_memory: int,
    receive_memory: int,
    send_doorbell: int,
    receive_doorbell: int,
    options: LinkOptions,
) -> Link:
    """A link over shared memory: descriptors of `shm_bytes` each, and of a connected Unix socket for each direction.

    Takes all four over, also where it raises. The memory must be zero when the first side maps it.

    Raises ValueError for wrong options or memory of another size, layout or options than the peer's; OSError for a
    descriptor that is not what it should be.
    """

class VerbsCable:
    """This end of a cable to the peer: a device, its port, and which of the port's GIDs is its address."""

    def __init__(self, *, device: str, port: int, gid_index: int) -> None: ...

class VerbsOptions:
    """What links over RDMA devices have beside the knobs of all links.

    Args:
        library: Path of the verbs library; empty: MACMESH_VERBS_LIBRARY, or the system's.
        mode: "uc", "rc", or "auto": reliable where neither end is a Thunderbolt device, else unreliable.
        build: Of the operating system; where both ends give one they must be equal.
        retransmit_ms: Silence about a sent frame after which the peer is asked.
        silence_seconds: Without a word on the control socket after which the peer is lost.
        linger_seconds: How long a link that closes waits for the peer to have all.
        max_attempts: Of one frame, then the link fails.
        links_per_device: How many links share a device's queue pairs; 2 for each peer that it leads to.

    Raises:
        ValueError: one that cannot be.
    """

    def __init__(
        self,
        *,
        library: str = "",
        mode: str = "auto",
        build: str = "",
        retransmit_ms: float = 5.0,
        silence_seconds: float = 10.0,
        linger_seconds: float = 2.0,
        max_attempts: int = 12,
        links_per_device: int = 2,
    ) -> None: ...

def verbs_devices(library: str | None = None) -> list[dict[str, Any]]:
    """The devices that a verbs library lists.

    Each has `name`, `guid`, `thunderbolt`, `failure` (why nothing more is known, or empty), `limits`
    (`max_queue_pairs`, `max_regions`, `max_send_requests`, `max_receive_requests`, `max_completions`,
    `max_message_bytes`, `max_region_bytes`, `frame_bytes`) and `ports`: `number`, `state` ("PORT_ACTIVE", ...), `mtu`,
    and `gids`, pairs of index and address.

    Raises OSError where the library cannot be had; the message says what to do.
    """

def verbs_link(
    control: int, cables: list[VerbsCable], options: LinkOptions, verbs: VerbsOptions, deadline_seconds: float
) -> Link:
    """A link over RDMA devices; the peer calls it at the same time, with its ends of the cables in the same order.

    Takes over the connected stream socket `control`, also where it raises. Both ends compare what they are, connect
    their queue pairs, and send a pattern over each in both directions before it returns.

    Raises OSError where a device or the library refuses, ConnectionError where the peer goes or refuses or a cable
    carries nothing, TimeoutError at the deadline, RuntimeError where a cable alters what it carries, ValueError for
    wrong options and where the two ends do not fit together.
    """

def verbs_link_facts(link: Link) -> dict[str, Any]:
    """What a link over RDMA devices has and did.

    `mode`, `classes` (`bytes`, `sends`, `receives`), `notes` (what was cut down to fit the device, and why),
    `cables`, `cables_alive`, `regions`, `queue_pairs`, and how often what happened: `retransmitted`, `lost`,
    `broken`, `repeated`, `probes`, `reports`.
    """

def verbs_counts() -> dict[str, int]:
    """What this process has made and freed of verbs objects.

    `devices_opened`, `devices_closed`, `regions_made`, `regions_freed`, `queue_pairs_made`, `queue_pairs_freed`.
    """

def link_ping(link: Link, size_bytes: int, count: int, timeout_seconds: float) -> list[float]:
    """Seconds of each of `count` round trips of a message of that size; the peer runs `link_echo`.

    The four measuring functions use the link alone, without MLX and without the GIL. They raise TimeoutError,
    ConnectionError where the peer is gone or the link was aborted, and RuntimeError for what is no frame.
    """

def link_echo(link: Link, size_bytes: int, count: int, timeout_seconds: float) -> None:
    """Sends back each of `count` messages of that size."""

def link_flood(link: Link, size_bytes: int, count: int, timeout_seconds: float) -> float:
    """Seconds that `count` messages of that size need until the peer, in `link_drain`, has them all."""

def link_drain(link: Link, size_bytes: int, count: int, timeout_seconds: float) -> None:
    """Takes `count` messages of that size, then answers once."""

def require_memory(arrays: Sequence[mx.array]) -> None:
    """Raises RuntimeError where one is not evaluated or not row-contiguous, as the host transfers do."""

class MeshGroup:
    """A group of ranks joined by links.

    The first failure ends the group for ever: its reason goes to every peer, every operation under way raises, and
    every later one raises at once. Closing is orderly: a peer can still receive what was sent before, and only fails
    where it needs more. Operations raise RuntimeError; MLX raises it where the result is evaluated.

    Args:
        peers: For each other rank that this one talks to: the links of the point-to-point and of the collective
            lane (None or empty: that lane is not there; several: large messages are cut over them) and the
            descriptor of the side socket (-1: none); all are taken over, also where this raises ValueError.
        epoch: Generation, term and sequence of the plan.
        name: For messages to people.
        timeout_seconds: Deadline of every operation.
        spin_us: How long a wait spins before it blocks.
        checksum_payloads: Whether frames carry a CRC-32C of their payload. Frames that carry one are checked anyway.
        split: Called by `mlx.split` with this rank's colour and the ranks of the new group in their new order (at
            least two); makes that group. None: the group cannot be split. Let go by `close`.

    `mlx.split` follows MPI_Comm_split: the ranks of a colour make a group, ordered by key, then by rank; a negative
    key stands for the rank. A rank that is alone in its colour, or whose colour is negative, gets a group of its own.

    Raises:
        ValueError: a rank, size or time that cannot be, or a link that was handed over before.
        OSError: the system refuses a pipe or a thread.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        peers: dict[int, tuple[Link | Sequence[Link] | None, Link | Sequence[Link] | None, int]],
        epoch: tuple[int, int, int],
        name: str,
        timeout_seconds: float,
        spin_us: float,
        checksum_payloads: bool = False,
        split: Callable[[int, list[int]], MeshGroup] | None = None,
    ) -> None: ...
    @property
    def mlx(self) -> mx.distributed.Group:
        """For `mlx.core.distributed` and all that takes a group. The mesh lives as long as either."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def failure(self) -> tuple[str, str, int] | None:
        """What ended the group: its code, the text, and the rank to blame or -1. None while nothing has.

        Codes: "peer_lost" (it closed, died, or gave up), "timeout", "mismatch", "corrupt", "aborted" (by this side),
        "local". A peer that gave up tells its own code and whom it blames; both are passed on here.
        """

    timeout_seconds: float
    receive_timeout_seconds: float
    """Of `mlx.core.distributed.recv` and `receive_bytes`; the group's own until it is set."""
    @property
    def pool_bytes(self) -> int:
        """Bytes of buffers held: those of the links and the scratch of the collectives. 0 once closed."""

    def send_bytes(self, peer: int, payload: bytes | bytearray | memoryview) -> None:
        """Sends bytes on the point-to-point lane; for tests and measurements. Raises RuntimeError as MLX does."""

    def receive_bytes(self, peer: int, into: bytearray | memoryview) -> None:
        """Receives as many bytes as `into` holds."""

    def host_send(self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float | None = None) -> None:
        """Sends evaluated, row-contiguous arrays from their memory, in the calling thread and without the GIL.

        The host transfers raise RuntimeError as `send_bytes` does; one that was refused does not end the group.

        Args:
            peer: Rank of the receiver.
            arrays: Of any number, also none; they travel together.
            timeout_seconds: Deadline of the whole call. None: the group's; infinity: none.
        """

    def host_receive_into(
        self, peer: int, arrays: Sequence[mx.array], timeout_seconds: float | None = None
    ) -> None:
        """Fills the memory of evaluated, row-contiguous arrays with what `host_send` sends on the other side."""

    def host_receive(self, peer: int, timeout_seconds: float | None = None) -> list[mx.array]:
        """New evaluated arrays of the sender's shapes and dtypes."""

    def host_send_message(
        self, peer: int, payload: bytes | bytearray | memoryview, timeout_seconds: float | None = None
    ) -> None:
        """Sends bytes whose number the receiver need not know; at most 16 MiB."""

    def host_receive_message(self, peer: int, timeout_seconds: float | None = None) -> bytes:
        """Receives what `host_send_message` sends on the other side."""

    def abort(self, reason: str) -> None:
        """Ends the group and every wait in it, and tells the peers why. From any thread."""

    def close(self) -> None:
        """Says goodbye and gives everything up; an operation under way raises. Harmless when repeated.

        Groups that are still open when the interpreter ends are closed then.
        """
