"""gRPC options that both ends agree on: a server of macmesh sets `SERVER_OPTIONS`."""

from typing import Final

#: A prompt of a very long context is a few MB; gRPC's default of 4 MiB would refuse it.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

#: Room for the status details of an error.
MAX_METADATA_BYTES: Final = 32 * 1024

#: What a server must set so that clients of the SDK can talk to it.
SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    # A remote client pings every 20 s during a call; without this a server takes that for an attack.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Two daemons must never share a port silently.
    ("grpc.so_reuseport", 0),
)
