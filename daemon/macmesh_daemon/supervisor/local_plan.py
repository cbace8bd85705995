"""A plan on this machine alone, made without a cluster: for comparing and for trying out."""

import datetime as dt
import itertools
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from macmesh.v1 import lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.errors import LocalVerifyError

LOOPBACK = "127.0.0.1"
VALIDITY = dt.timedelta(days=1)
LAYER_COUNT_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def count_layers(model_path: Path) -> int:
    """Number of layers that a model's config names.

    Raises:
        LocalVerifyError: there is no such config, or it names none.
    """
    try:
        config = json.loads((model_path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise LocalVerifyError(f"{model_path} is no model folder: {error}") from error
    for part in (config, config.get("text_config", {})):
        for key in LAYER_COUNT_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    raise LocalVerifyError(f"{model_path / 'config.json'} does not say how many layers the model has")


def even_cuts(layer_count: int, stage_count: int) -> list[int]:
    """First layers of all stages but the head, as even as can be; earlier stages get the rest.

    Raises:
        LocalVerifyError: there are more stages than layers.
    """
    if not 1 <= stage_count <= layer_count:
        raise LocalVerifyError(f"{layer_count} layers cannot be cut into {stage_count} stages")
    size, rest = divmod(layer_count, stage_count)
    return [index * size + min(index, rest) for index in range(1, stage_count)]


def local_plan(
    model_paths: Sequence[Path],
    cuts: Sequence[int],
    *,
    layer_count: int,
    context_tokens: int,
    slots: int = 1,
    prefill_chunk_tokens: int = 1024,
    kv_bits: int = 0,
    transfers: str = "",
    step_deadline_seconds: float = 60.0,
    tensor_parallel: bool = False,
) -> list[lane_pb2.StartStage]:
    """The start command of every worker of a plan whose stages all run on this machine.

    Each stage has a node id and a certificate of its own, under a CA that is thrown away with the plan.

    Args:
        model_paths: folder of the model for each stage, head first; usually all the same.
        cuts: first layers of all stages but the head.
        layer_count: of the whole model.
        context_tokens: most tokens of one request, prompt and output together.
        slots: requests served at once.
        prefill_chunk_tokens: most prompt tokens in one step.
        kv_bits: bits of a quantised cache; 0 keeps the model's own type.
        transfers: how decode steps go from stage to stage; empty: what the stages choose.
        step_deadline_seconds: longest wait for another stage.
        tensor_parallel: every stage has its part of every layer; then there are no cuts.

    Raises:
        LocalVerifyError: the cuts do not make so many stages.
    """
    count = len(model_paths)
    bounds = [0, *cuts, layer_count]
    ranges = [(0, layer_count)] * count if tensor_parallel else list(itertools.pairwise(bounds))
    if tensor_parallel and (cuts or count < 2):  # noqa: PLR2004  one is no split
        raise LocalVerifyError(f"{count} stages cannot share every layer, cut at {list(cuts)}")
    if bounds != sorted(set(bounds)) or len(ranges) != count:
        raise LocalVerifyError(
            f"cuts {list(cuts)} do not make {len(model_paths)} stages of {layer_count} layers"
        )
    node_ids = [f"stage{index}-{secrets.token_hex(4)}" for index in range(len(model_paths))]
    ca_pem, identities = throwaway_identities(node_ids)
    deployment = types_pb2.Deployment(
        model=types_pb2.ModelRef(model_id=str(model_paths[0]), path=str(model_paths[0])),
        layer_count=layer_count,
        context_tokens=context_tokens,
        slots=slots,
        prefill_chunk_tokens=prefill_chunk_tokens,
        kv_bits=kv_bits,
        stages=[
            types_pb2.Stage(index=index, node_id=node_id, first_layer=first, end_layer=end)
            for index, (node_id, (first, end)) in enumerate(zip(node_ids, ranges, strict=True))
        ],
        parallelism="tensor" if tensor_parallel else "pipeline",
        transport="auto",
        sync_mode="safe",
        transfers=transfers,
    )
    return [
        lane_pb2.StartStage(
            epoch=types_pb2.Epoch(generation=0, term=1, seq=1),
            deployment=deployment,
            stage_index=index,
            model_path=str(path),
            bind_host=LOOPBACK,
            host_id="this machine",
            ca_pem=ca_pem,
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            step_deadline_seconds=step_deadline_seconds,
        )
        for index, (path, (certificate_pem, key_pem)) in enumerate(zip(model_paths, identities, strict=True))
    ]


def peers_of(
    starts: Sequence[lane_pb2.StartStage], reports: Sequence[peer_pb2.WorkerReport]
) -> peer_pb2.SetPeersRequest:
    """What every worker of a local plan is told once all have reported their addresses."""
    return peer_pb2.SetPeersRequest(
        epoch=starts[0].epoch,
        epoch_key=secrets.token_bytes(32),
        peers=[
            peer_pb2.PeerAddress(
                stage_index=report.stage_index,
                node_id=starts[0].deployment.stages[report.stage_index].node_id,
                control_address=report.control_address,
                tensor_address=report.tensor_address,
            )
            for report in reports
        ],
    )


def throwaway_identities(node_ids: Sequence[str]) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A CA and, for each node, a certificate and key: PEM of the CA, PEM pairs of the nodes. Kept nowhere."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "macmesh local plan")])
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    pairs = []
    for node_id in node_ids:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _certificate(name, ca_name, key.public_key())
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(f"{node_id}.node.macmesh")]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        pairs.append(
            (
                certificate.public_bytes(serialization.Encoding.PEM),
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            )
        )
    return ca.public_bytes(serialization.Encoding.PEM), pairs


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + VALIDITY)
    )
