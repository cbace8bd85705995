import copy
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_placement import LocalProfileError, ModelProfile
from placement import drawn

SEEDS = st.integers(0, 2**48)


def _profile(seed: int) -> ModelProfile:
    return drawn.profile(Random(seed))  # noqa: S311  drawn cases, no secrets


@given(SEEDS)
def test_json_gives_the_same_profile_back(seed: int) -> None:
    profile = _profile(seed)
    assert ModelProfile.from_json_text(profile.to_json_text()) == profile


def test_equal_layers_are_written_once() -> None:
    layer = _profile(1).layers[0]
    profile = _with_layers(1, [layer] * 500)
    value = profile.to_json()
    assert [item["count"] for item in value["layers"]] == [500]
    assert value["cut_points"] == "all"
    assert ModelProfile.from_json(value) == profile


def _with_layers(seed: int, layers: list[Any]) -> ModelProfile:
    value = _profile(seed).to_json()
    value["layers"] = [layer.to_json() for layer in layers]
    value["cut_points"] = "all"
    value["cut_reason"] = ""
    return ModelProfile.from_json(value)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _paths(item, (*at, key))
    return found


@given(SEEDS, st.data())
def test_any_damage_gives_a_profile_or_a_clear_error(seed: int, data: st.DataObject) -> None:
    value = copy.deepcopy(_profile(seed).to_json())
    path = data.draw(st.sampled_from(_paths(value)))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(
            st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.just([]) | st.just({})
        )
    try:
        ModelProfile.from_json_text(json.dumps(value))
    except LocalProfileError as problem:
        assert str(problem)  # noqa: PT017  either outcome is right


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "macmesh-profile/9"}, "macmesh-profile/2"),
        ({"layers": []}, "layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"embedding_bytes": -1}, "embedding_bytes"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"position_limit": 0}, "position_limit"),
        ({"cut_points": [0]}, "cut_points"),
        ({"cut_points": ["1"]}, "cut_points"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_the_error_names_the_field(change: dict[str, object], named: str) -> None:
    value = {**_profile(3).to_json(), **change}
    with pytest.raises(LocalProfileError, match=named):
        ModelProfile.from_json(value)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"format": NaN}', "[" * 100_000])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(LocalProfileError):
        ModelProfile.from_json_text(text)


def _with_shard(ways: int, **changes: Any) -> dict[str, Any]:
    value = _profile(5).to_json()
    sizes = dict.fromkeys(
        (
            "embedding_bytes",
            "norm_bytes",
            "head_bytes",
            "shared_bytes",
            "reductions_per_step",
            "reduced_bytes_per_token",
        ),
        7,
    )
    value["tensor_shards"] = [{"ways": ways, **sizes, "layers": value["layers"], **changes}]
    return value


def test_shards_come_back_from_json() -> None:
    profile = ModelProfile.from_json(_with_shard(4))
    (shard,) = profile.tensor_shards
    assert (shard.ways, shard.layers) == (4, profile.layers)
    assert shard.weight_bytes == 4 * 7 + sum(layer.weight_bytes for layer in profile.layers)
    assert ModelProfile.from_json_text(profile.to_json_text()) == profile


@pytest.mark.parametrize(
    ("ways", "changes", "named"),
    [
        (1, {}, r"tensor_shards\[0\].ways"),
        (2, {"layers": []}, "tensor_shards of 2 has 0 layers"),
        (2, {"norm_bytes": -1}, r"tensor_shards\[0\].norm_bytes"),
        (2, {"unheard_of": 1}, "unheard_of"),
    ],
)
def test_the_error_names_the_shard(ways: int, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(LocalProfileError, match=named):
        ModelProfile.from_json(_with_shard(ways, **changes))


def test_a_tied_head_may_copy_a_part_of_the_embedding() -> None:
    value = {**_profile(1).to_json(), "tied": True, "head_bytes": 0, "embedding_bytes": 100, "norm_bytes": 1}
    for part, tail_bytes in ((None, 101), (60, 61), (0, 1)):
        profile = ModelProfile.from_json({**value, "head_copy_bytes": part})
        assert profile.tail_bytes == tail_bytes
        assert ModelProfile.from_json_text(profile.to_json_text()) == profile
    with pytest.raises(LocalProfileError, match="head_copy_bytes"):
        ModelProfile.from_json({**value, "head_copy_bytes": 101})
    with pytest.raises(LocalProfileError, match="head_copy_bytes"):
        ModelProfile.from_json({**value, "tied": False, "head_copy_bytes": 1})
