import json

import pytest

from macmesh_placement import LocalClusterError, NodeCapacity, cluster_from_json

NODE = {"name": "a", "ram_bytes": 100, "usable_bytes": 75, "bandwidth_gb_per_s": 400}


def test_a_cluster_file_gives_its_nodes() -> None:
    second = {
        **NODE,
        "name": "b",
        "node_id": "id-b",
        "host_id": "h",
        "flops_tflops": 14.5,
        "fused_attention": False,
    }
    nodes = cluster_from_json(json.dumps({"format": "macmesh-cluster/1", "nodes": [NODE, second]})).nodes
    assert nodes[0] == NodeCapacity(
        node_id="a", name="a", ram_bytes=100, usable_bytes=75, bandwidth_gb_per_s=400.0
    )
    assert (nodes[1].node_id, nodes[1].host, nodes[1].flops_tflops, nodes[1].fused_attention) == (
        "id-b",
        "h",
        14.5,
        False,
    )
    assert cluster_from_json(json.dumps([NODE])).nodes == nodes[:1]


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([], "empty"),
        ([NODE, NODE], "twice"),
        ([{**NODE, "usable_bytes": 0}], r"nodes\[0\].usable_bytes"),
        ([{**NODE, "usable_bytes": 101}], "exceeds"),
        ([{**NODE, "ram_bytes": -5}], "ram_bytes"),
        ([{**NODE, "bandwidth_gb_per_s": "fast"}], "bandwidth_gb_per_s"),
        ([{**NODE, "bandwidth_gb_per_s": -1}], "bandwidth_gb_per_s"),
        ([{**NODE, "flops_tflops": 0}], "flops_tflops"),
        ([{**NODE, "ramm": 1}], "ramm"),
        ([{key: value for key, value in NODE.items() if key != "name"}], "name"),
        ([{key: value for key, value in NODE.items() if key != "ram_bytes"}], "ram_bytes"),
        (["node"], r"nodes\[0\]"),
    ],
)
def test_bad_nodes_are_refused_with_the_field(nodes: list[object], named: str) -> None:
    with pytest.raises(LocalClusterError, match=named):
        cluster_from_json(json.dumps({"nodes": nodes}))


@pytest.mark.parametrize(
    "text", ["", "7", '{"nodes": 3}', '{"format": "x/2", "nodes": []}', '[{"ram_bytes": Infinity}]', "{}"]
)
def test_what_is_no_cluster_file_is_refused(text: str) -> None:
    with pytest.raises(LocalClusterError):
        cluster_from_json(text)
