from macmesh.v1 import types_pb2
from macmesh_daemon.cluster.messages import ModelRef
from macmesh_daemon.config import Config
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.node.lane_choice import TransportChoice
from macmesh_daemon.node.translation import deployment_of, link_options
from macmesh_daemon.worker import tensor_lane
from macmesh_placement import LayerProfile, ModelProfile, Placement, all_cut_points
from macmesh_placement.result import Certificate
from macmesh_rdma.options import LinkOptions


def profile() -> ModelProfile:
    return ModelProfile(
        model_id="m",
        model_type="qwen3",
        digest="d",
        layers=(LayerProfile(weight_bytes=1, active_weight_bytes=1, active_parameters=1, parameter_count=1),),
        embedding_bytes=1,
        norm_bytes=1,
        head_bytes=1,
        tied=False,
        hidden_size=1,
        vocab_size=1,
        activation_bytes=2,
        position_limit=64,
        cut_points=all_cut_points(1),
    )


def placement() -> Placement:
    return Placement(
        model_id="m",
        digest="d",
        layer_count=1,
        context_tokens=64,
        slots=1,
        prefill_chunk_tokens=64,
        objective="throughput",
        stages=(),
        predicted_decode_seconds=0,
        predicted_slowest_stage_seconds=0,
        bytes_to_load=0,
        certificate=Certificate(
            exact=True,
            method="none",
            best_objective_seconds=0,
            objective_seconds=0,
            fewest_bytes_proved=True,
        ),
    )


def test_every_setting_of_the_links_reaches_the_stages() -> None:
    config = Config(
        link_num_buffers=3,
        link_frame_bytes=2048,
        link_buffer_sizes=2,
        link_max_outstanding=5,
        link_spin_us=0.0,
        link_sockets=4,
        link_checksum_payloads=True,
    )
    deployment = to_proto(
        deployment_of(placement(), profile(), ModelRef(), link_options(config), TransportChoice("auto"))
    )
    assert tensor_lane.link_options(deployment) == LinkOptions(
        num_buffers=3,
        frame_bytes=2048,
        buffer_sizes=2,
        max_outstanding=5,
        spin_us=0.0,
        sockets_per_link=4,
        checksum_payloads=True,
    )


def test_what_a_plan_does_not_say_is_default() -> None:
    assert tensor_lane.link_options(types_pb2.Deployment()) == LinkOptions()
    buffers = types_pb2.LinkBuffers(num_buffers=2, frame_bytes=4096, buffer_sizes=2)
    told = tensor_lane.link_options(types_pb2.Deployment(link_buffers=buffers))
    assert told == LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=2)
