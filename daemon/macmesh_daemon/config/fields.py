"""The settings of a node, each with its unit, default and reason."""

import ipaddress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import platformdirs

from macmesh.paths import LONGEST_SOCKET_PATH_BYTES, socket_path

# Not taken from the logging module: importing that costs the command line a tenth of a second.
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "pretty", "json"]
RebalancePolicy = Literal["never", "when_it_pays", "always"]
SyncMode = Literal["auto", "safe", "fast"]
Transport = Literal["auto", "shm", "tcp", "verbs", "jaccl"]

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """What a person needs to know about one setting."""

    meaning: str
    reason: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    #: How the default is written where it is computed.
    default_text: str = ""


def _doc(
    meaning: str,
    *,
    reason: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    default_text: str = "",
) -> dict[str, FieldDoc]:
    doc = FieldDoc(
        meaning=meaning,
        reason=reason,
        unit=unit,
        minimum=minimum,
        maximum=maximum,
        default_text=default_text,
    )
    return {"doc": doc}


def _default_data_dir() -> Path:
    return platformdirs.user_data_path("macmesh", appauthor=False)


def _default_models_folders() -> tuple[Path, ...]:
    return (platformdirs.user_data_path("macmesh", appauthor=False) / "models",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set about a node. Frozen: a daemon reads it once, at start."""

    data_dir: Path = field(
        default_factory=_default_data_dir,
        metadata=_doc(
            "Folder of the node's key, certificates, votes and caches. One daemon per folder.",
            reason="the platform's place for a user's application data",
            default_text="`~/Library/Application Support/macmesh` (macOS), `~/.local/share/macmesh` (Linux)",
        ),
    )
    socket_path: Path | None = field(
        default=None,
        metadata=_doc(
            "Unix socket for clients on this machine.",
            reason=(
                "`macmeshd.sock` in `data_dir`; in `/tmp/macmesh-<uid>/` where that path passes "
                f"{LONGEST_SOCKET_PATH_BYTES} bytes, which the operating system would refuse"
            ),
            default_text="from `data_dir`",
        ),
    )
    models_folders: tuple[Path, ...] = field(
        default_factory=_default_models_folders,
        metadata=_doc(
            "Folders searched, in order, for a model that is asked for by name.",
            reason="a folder that the same user can write",
            default_text="`models` in the default `data_dir`",
        ),
    )

    weights_folder: Path | None = field(
        default=None,
        metadata=_doc(
            "Folder of what is fetched of models from other nodes and hubs. It may be removed while no daemon runs.",
            reason="beside the rest of the node's data; another disk where that one is small",
            default_text="`weights` in `data_dir`",
        ),
    )
    weights_serving_bytes_per_second: int = field(
        default=200_000_000,
        metadata=_doc(
            (
                "Most that this node sends of its models to other nodes while its worker may be at work on requests; "
                "0 means no limit. While it is idle there is none."
            ),
            reason="a fraction of what disk, memory and network take, so that those who generate hardly notice",
            unit="bytes per second",
            minimum=0,
        ),
    )
    hub_endpoint: str = field(
        default="",
        metadata=_doc(
            "Address of the hub from which models named `organisation/model` are downloaded that no node has.",
            reason="empty: that of `HF_ENDPOINT`, or Hugging Face's own",
        ),
    )

    listen_host: str = field(
        default="0.0.0.0",  # noqa: S104  peers are on the network; the port speaks mutual TLS only
        metadata=_doc(
            "IP address to listen on for peers and remote clients. `127.0.0.1` keeps it on this machine.",
            reason=(
                "peers are on the network, and nobody without a certificate of the cluster gets through the"
                " handshake"
            ),
        ),
    )
    listen_port: int = field(
        default=27450,
        metadata=_doc(
            "TCP port for peers and remote clients; 0 takes a free one at each start.",
            reason=(
                "fixed, so that seeds and firewalls can name it, and below the ranges from which macOS "
                "(49152) and Linux (32768) pick outgoing ports"
            ),
            minimum=0,
            maximum=65535,
        ),
    )
    join_port: int = field(
        default=27451,
        metadata=_doc(
            "TCP port of the join door, which is open only while a join token lives; 0 takes a free one.",
            reason="beside `listen_port`; a machine that joins holds no certificate yet, and that port asks for one",
            minimum=0,
            maximum=65535,
        ),
    )
    advertise_addresses: tuple[str, ...] = field(
        default=(),
        metadata=_doc(
            "IP addresses told to peers instead of those of the network interfaces.",
            reason="empty: every address of the interfaces that mDNS uses",
        ),
    )

    mdns: bool = field(
        default=True,
        metadata=_doc(
            "Find peers and be found by multicast DNS.",
            reason="no address needs to be typed",
        ),
    )
    mdns_interfaces: tuple[str, ...] = field(
        default=(),
        metadata=_doc(
            (
                "Interface names or IP addresses that mDNS uses. `127.0.0.1` alone finds daemons of this "
                "machine only."
            ),
            reason="empty: all but loopback, AWDL, VPN tunnels and virtual machines' bridges",
        ),
    )
    mdns_announce_interval_seconds: float = field(
        default=15.0,
        metadata=_doc(
            "Time between announcements, varied by 20 %.",
            reason=(
                "bounds how long a peer that missed an announcement stays unknown, at a few packets a minute"
            ),
            unit="seconds",
            minimum=0.1,
            maximum=3600,
        ),
    )
    mdns_lonely_interval_seconds: float = field(
        default=5.0,
        metadata=_doc(
            "Time between announcements while no peer is known.",
            reason="a node that is alone has nothing better to do than to look for others",
            unit="seconds",
            minimum=0.1,
            maximum=3600,
        ),
    )
    seeds: tuple[str, ...] = field(
        default=(),
        metadata=_doc(
            "Peers to try besides those that mDNS finds, as `host:port` (an IPv6 address in brackets).",
            reason="empty: mDNS suffices on most networks; where multicast is blocked one seed suffices",
        ),
    )

    usable_bytes: int = field(
        default=0,
        metadata=_doc(
            (
                "Upper limit of the memory that models may take on this machine; 0 means no limit of its "
                "own. It can only lower what the system allows."
            ),
            reason="the system's limit is what the GPU can wire",
            unit="bytes",
            minimum=0,
        ),
    )
    runtime_reserve_bytes: int = field(
        default=1 * _GIB,
        metadata=_doc(
            "Part of the usable memory that each stage keeps free for the Python and GPU runtimes.",
            reason="kernels, command buffers and the interpreter come on top of weights and caches",
            unit="bytes",
            minimum=0,
        ),
    )
    bandwidth_probe: bool = field(
        default=True,
        metadata=_doc(
            "Measure the memory bandwidth once, in about a second, and keep the result.",
            reason="the planner's times come from it; without it the chip's published figure is used",
        ),
    )
    probe_cache_dir: Path | None = field(
        default=None,
        metadata=_doc(
            "Folder of the kept bandwidth measurement. Daemons of one machine that share it measure once.",
            reason="beside the rest of the node's data",
            default_text="`data_dir`",
        ),
    )

    prefill_chunk_tokens: int = field(
        default=1024,
        metadata=_doc(
            "Largest number of prompt tokens computed in one step.",
            reason=(
                "large enough to fill the GPU, small enough to bound scratch memory and the wait of others"
            ),
            unit="tokens",
            minimum=1,
            maximum=65536,
        ),
    )
    transport: Transport = field(
        default="auto",
        metadata=_doc(
            (
                "What carries the arrays between the stages of a plan: `shm` (one machine only), `tcp`, `verbs` "
                "(links of our own over RDMA devices), `jaccl` (MLX's RDMA over Thunderbolt between Macs), or "
                "`auto`, which takes `verbs`, then `jaccl`, where cables join all stages and their tests pass, else "
                "the best for each pair. The coordinator's setting counts; what was asked for and cannot be had "
                "refuses the plan."
            ),
            reason="`auto` takes the fastest that works and says in `daemonctl status` why",
        ),
    )
    verbs_library: str = field(
        default="",
        metadata=_doc(
            "File of the library by which RDMA devices are used; empty: the system's.",
            reason="macOS has `librdma.dylib`, Linux `libibverbs.so.1`; another one serves tests",
        ),
    )
    verbs_setups_per_boot: int = field(
        default=20,
        metadata=_doc(
            (
                "How often this machine sets up links over RDMA devices before `daemonctl status` asks for a restart "
                "of the machine; no more are set up then."
            ),
            reason="Apple's driver is reported to degrade after some ten set-ups in quick succession, until a restart",
            minimum=1,
            maximum=1_000_000,
        ),
    )
    link_num_buffers: int = field(
        default=8,
        metadata=_doc(
            (
                "Buffers of each size and direction of a link between two stages. More: more in flight. The variable "
                "`MLX_JACCL_NUM_BUFFERS` stands for it where it is set nowhere else."
            ),
            reason="enough to keep a link busy at decode; 64 suits long prefills, at eight times the memory",
            minimum=1,
            maximum=4096,
        ),
    )
    link_frame_bytes: int = field(
        default=65536,
        metadata=_doc(
            "Bytes of a buffer of the smallest size; a power of two.",
            reason="an activation of one token fits",
            unit="bytes",
            minimum=1024,
            maximum=1 << 26,
        ),
    )
    link_buffer_sizes: int = field(
        default=6,
        metadata=_doc(
            "Sizes of buffers of a link, each twice the one before.",
            reason="from 64 KiB to 2 MiB, where a copy costs more than a handover",
            minimum=1,
            maximum=12,
        ),
    )
    link_max_outstanding: int = field(
        default=256,
        metadata=_doc(
            "Frames in flight in each direction of a link between two stages.",
            reason="more than there are buffers, so that small frames never wait for a place",
            minimum=1,
            maximum=65536,
        ),
    )
    link_spin_us: float = field(
        default=100.0,
        metadata=_doc(
            "How long a wait for a link spins before it blocks.",
            reason="what waking up a sleeping processor costs; a late peer costs no processor time beyond it",
            unit="microseconds",
            minimum=0,
            maximum=10000,
        ),
    )
    link_sockets: int = field(
        default=1,
        metadata=_doc(
            "TCP sockets of a link between two machines; messages from 256 KiB on are cut over them.",
            reason="one fills a cable; more help where a single connection is slower than the network",
            minimum=1,
            maximum=16,
        ),
    )
    link_checksum_payloads: bool = field(
        default=False,
        metadata=_doc(
            "Whether what travels between two stages carries a CRC-32C, beside the one of each frame's header.",
            reason="TCP and memory check already; for a network that is suspected of altering packets",
        ),
    )
    worker_rest_seconds: float = field(
        default=120.0,
        metadata=_doc(
            "How long a worker's process that outlived its epoch holds its weights for the next plan.",
            reason="a new plan follows within seconds, a machine that restarts is back within two minutes",
            unit="seconds",
            minimum=1.0,
            maximum=3600,
        ),
    )
    step_deadline_seconds: float = field(
        default=30.0,
        metadata=_doc(
            "Longest time one step of the pipeline may take before its requests fail.",
            reason=(
                "several times the slowest prefill step of a large model, and short enough for a person to "
                "wait"
            ),
            unit="seconds",
            minimum=0.1,
            maximum=3600,
        ),
    )

    request_patience_seconds: float = field(
        default=120.0,
        metadata=_doc(
            "Longest time a request waits without stages to run it, since its last token, before it fails with "
            "what is missing.",
            reason=(
                "a new plan is ready within seconds where the weights are there, and within a minute or two where "
                "they have to be read; people have given up after that"
            ),
            unit="seconds",
            minimum=0,
            maximum=86400,
        ),
    )

    sync_mode: SyncMode = field(
        default="auto",
        metadata=_doc(
            (
                "How the GPU and the transport wait for each other: `safe`, `fast` (Metal only), or `auto`, which "
                "takes `fast` on a node where a self-test passes and gains. The coordinator's setting counts."
            ),
            reason=(
                "`fast` saves some 0.2 ms for each transfer, but MLX may hang with it; a node where it hung "
                "is kept from it until macOS or MLX is updated"
            ),
        ),
    )

    bootstrap_expect: int = field(
        default=1,
        metadata=_doc(
            "Nodes that must see each other before a new cluster elects its first coordinator.",
            reason=(
                "1: the founder starts alone and others join; a throw-away cluster whose nodes start "
                "together sets its size"
            ),
            unit="nodes",
            minimum=1,
            maximum=64,
        ),
    )
    heartbeat_interval_seconds: float = field(
        default=0.25,
        metadata=_doc(
            "Time between the coordinator's heartbeats.",
            reason="four chances within the shortest election timeout",
            unit="seconds",
            minimum=0.01,
            maximum=60,
        ),
    )
    rpc_deadline_seconds: float = field(
        default=0.5,
        metadata=_doc(
            "Time in which a peer must answer a heartbeat or a vote.",
            reason="a hung process is noticed by this alone; a hundred times a local round trip",
            unit="seconds",
            minimum=0.01,
            maximum=60,
        ),
    )
    election_timeout_min_seconds: float = field(
        default=1.0,
        metadata=_doc(
            "Shortest time without a coordinator before a node asks for votes.",
            reason=(
                "four heartbeats: rides out Wi-Fi jitter, and a lost coordinator is still replaced in one "
                "to two seconds"
            ),
            unit="seconds",
            minimum=0.02,
            maximum=300,
        ),
    )
    election_timeout_max_seconds: float = field(
        default=2.0,
        metadata=_doc(
            "Longest such time; each node draws its own between the two.",
            reason="a spread of a second makes split votes rare",
            unit="seconds",
            minimum=0.02,
            maximum=600,
        ),
    )
    lease_seconds: float = field(
        default=0.8,
        metadata=_doc(
            "Time after which a coordinator that a quorum has not answered steps down.",
            reason="shorter than the shortest election timeout, so that it is gone before its successor",
            unit="seconds",
            minimum=0.01,
            maximum=300,
        ),
    )
    dead_after_seconds: float = field(
        default=3.0,
        metadata=_doc(
            "Time without an answer after which a member counts as lost and the plan is made without it.",
            reason="a false loss costs a reload; three seconds of silence on a local network are not jitter",
            unit="seconds",
            minimum=0.1,
            maximum=600,
        ),
    )
    join_quiet_seconds: float = field(
        default=3.0,
        metadata=_doc(
            "Time without further joins before a plan takes new members in.",
            reason="nodes that start together are planned together",
            unit="seconds",
            minimum=0,
            maximum=600,
        ),
    )

    rebalance: RebalancePolicy = field(
        default="when_it_pays",
        metadata=_doc(
            "Whether the plan moves to nodes that became free: `never`, `when_it_pays`, or `always`.",
            reason="a move interrupts every stream for seconds; a lost node is always replaced at once",
        ),
    )
    rebalance_min_gain: float = field(
        default=0.1,
        metadata=_doc(
            "With `when_it_pays`, the share of the predicted time per token that a move must save.",
            reason="the cost model is a few percent off, and a move costs seconds",
            unit="share",
            minimum=0,
            maximum=0.99,
        ),
    )
    drills: bool = field(
        default=True,
        metadata=_doc(
            "Whether operators may have this node kill its own worker or give its office away: `daemonctl drill`.",
            reason="whoever may unload a model may interrupt it; a cluster that never rehearses fails in earnest",
        ),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=_doc(
            "Least level of the events that are logged.",
            reason="one line per decision",
        ),
    )
    log_format: LogFormat = field(
        default="auto",
        metadata=_doc(
            "`pretty`, `json`, or `auto`: pretty on a terminal, JSON lines elsewhere.",
            reason="people read terminals, programs read files",
        ),
    )

    def resolved_socket_path(self) -> Path:
        """Return where the Unix socket lies: as configured, else in the data folder, else in the fallback."""
        if self.socket_path is not None:
            return self.socket_path
        return socket_path(self.data_dir)

    def announced_addresses(self) -> tuple[str, ...]:
        """Return the IP addresses to tell peers; empty means those of the interfaces that mDNS uses."""
        if self.advertise_addresses:
            return self.advertise_addresses
        everywhere = ipaddress.ip_address(self.listen_host).is_unspecified
        return () if everywhere else (self.listen_host,)

    def resolved_weights_folder(self) -> Path:
        """Return the folder of partial models."""
        return self.data_dir / "weights" if self.weights_folder is None else self.weights_folder

    def resolved_probe_cache_dir(self) -> Path:
        """Return the folder of the kept bandwidth measurement."""
        return self.data_dir if self.probe_cache_dir is None else self.probe_cache_dir


def field_docs() -> dict[str, FieldDoc]:
    """Return what is documented about every field of ``Config``, in order."""
    return {item.name: item.metadata["doc"] for item in fields(Config)}
