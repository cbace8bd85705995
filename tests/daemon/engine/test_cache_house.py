"""Slots, batches and entries of a stage, as the steps' operations change them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_lm_cache

from macmesh_daemon.engine.anatomy import examine
from macmesh_daemon.engine.batch_caches import BatchCaches, BatchRow, compose
from macmesh_daemon.engine.cache_house import CacheHouse
from macmesh_daemon.engine.cache_traits import CacheTraits, cache_traits
from macmesh_daemon.engine.caches import StageCaches, make_caches
from macmesh_daemon.engine.errors import LocalStageError, RemoteScheduleError
from macmesh_daemon.engine.stage import load_stage
from macmesh_daemon.engine.steps import Close, Compose, Forget, Open, Operation, Reuse, Row, Step
from zoo import build_model, write_model
from zoo.batchtable import Requests, prompt
from zoo.cachetable import exact_memory
from zoo.reuse import GREEDY
from zoo.splits import uncompiled

# mlx-lm is not typed.
CACHES: Any = mlx_lm_cache


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    with uncompiled():
        yield


def requests_of(name: str) -> Requests:
    model = build_model(name)
    return Requests(model, examine(model))


@pytest.fixture(scope="module")
def llama() -> Requests:
    return requests_of("llama")


def decode(slots: tuple[int, ...], offsets: tuple[int, ...], batch: int | None = None) -> Step:
    rows = tuple(Row(slot, f"r{slot}", offset, 5) for slot, offset in zip(slots, offsets, strict=True))
    return Step(3, "decode", rows=rows, batch=batch)


def opened(slot: int, tokens: int = 300, **more: Any) -> Open:
    return Open(slot, f"r{slot}", tokens, GREEDY, **more)


def house_with(requests: Requests, *prompt_tokens: int) -> CacheHouse:
    """One request in each slot, of prompts of so many tokens, all of which went through."""
    house = CacheHouse(requests.caches, 4)
    for slot, tokens in enumerate(prompt_tokens):
        house.apply(opened(slot))
        caches = house.caches_for(decode((slot,), (0,)))
        requests.step([prompt("llama", tokens)], caches)
    return house


def test_a_batch_goes_on_where_its_rows_were(llama: Requests) -> None:
    house = house_with(llama, 5, 9)
    house.apply(Compose(2, (1, 0), 300))

    caches = house.caches_for(decode((1, 0), (9, 5), 2))

    assert isinstance(caches, BatchCaches)
    assert caches.lengths == [9, 5]
    llama.decode(caches, [4, 4], 3)
    assert house.caches_for(decode((1, 0), (12, 8), 2)) is caches


def test_closed_rows_become_entries_with_the_next_batch(llama: Requests) -> None:
    house = house_with(llama, 5, 9, 7)
    house.apply(Compose(0, (0, 1, 2), 300))
    house.apply(Close(1, "r1", keep_as=8, keep_tokens=6))
    house.apply(Close(0, "r0"))
    with pytest.raises(RemoteScheduleError, match=r"2 of them closed"):
        house.caches_for(decode((0, 1, 2), (5, 9, 7), 0))
    house.apply(Compose(0, (2,), 300))
    assert isinstance(house.caches_for(decode((2,), (7,), 0)), BatchCaches)
    house.apply(opened(1, reuse=Reuse(8, 4)))
    assert house.caches_for(decode((1,), (4,))).length == 4  # type: ignore[union-attr]  # alone, so not a batch


def test_all_is_given_back_in_the_end(llama: Requests) -> None:
    house = house_with(llama, 5, 9)
    house.apply(Compose(0, (0, 1), 300))
    house.apply(Close(1, "r1", keep_as=8, keep_tokens=6))
    house.apply(Close(0, "r0"))
    house.apply(Compose(0, (), 0))
    assert 0 < house.nbytes < llama.caches(300).nbytes + 1_000_000
    house.apply(Forget(8))
    assert house.nbytes == 0


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (opened(0), "slot 0 is held by request r0, not free for r0"),
        (opened(4), "slot 4 is none of the 4"),
        (opened(3, 0), "request r3 reserves 0 tokens"),
        (Open(3, "r0", 9, GREEDY), "request r0 has a slot already"),
        (opened(3, reuse=Reuse(1, 5)), "entry 1 is not there"),
        (opened(3, reuse=Reuse(8, 7)), "entry 8 has 6 tokens, which cannot be cut to 7"),
        (opened(3, 3, reuse=Reuse(8, 4)), "4 tokens of entry 8 do not fit the 3"),
        (Close(3, "r3"), "slot 3 is not there"),
        (Close(0, "other"), "slot 0 is held by request r0, not other"),
        (Close(0, "r0", keep_as=8, keep_tokens=3), "entry 8 is there already"),
        (Close(0, "r0", keep_as=9, keep_tokens=0), "request r0 has 5 tokens, which cannot be cut to 0"),
        (Close(1, "r1", keep_as=9, keep_tokens=10), "request r1 has 9 tokens, which cannot be cut to 10"),
        (Forget(3), "entry 3 is not there"),
        (Compose(5, (), 0), "batch 5 is not there"),
        (Compose(5, (0, 0), 300), "batch 5 names a slot twice"),
        (Compose(5, (0, 3), 300), "slot 3 is not there"),
        (Compose(5, (0, 1), 300), "slot 1 is to join batch 5 but is a row of batch 1"),
        (Compose(1, (0, 1), 300), r"\[1\] stay in it and come first"),
        (Compose(1, (1, 0), 8), "a row of 9 tokens does not fit a batch of 8"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    operation: Operation, message: str, llama: Requests
) -> None:
    house = house_with(llama, 5, 9, 7)
    house.apply(Compose(1, (1,), 300))
    house.apply(Close(2, "r2", keep_as=8, keep_tokens=6))
    held = house.nbytes

    with pytest.raises(RemoteScheduleError, match=message):
        house.apply(operation)

    assert house.nbytes == held
    assert house.caches_for(decode((0,), (5,)))
    assert house.caches_for(decode((1,), (9,), 1))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (decode((0,), (4,)), "slot 0 at offset 4, but its caches hold 5"),
        (decode((1,), (9,)), "slot 1 alone, a row of batch 1"),
        (decode((0, 1), (5, 9)), "2 rows and names no batch"),
        (decode((0,), (5,), 1), r"rows are \[1\]"),
        (decode((1,), (8,), 1), "offset 8, but its caches hold 9"),
        (decode((1,), (9,), 2), "batch 2 is not there"),
        (Step(1, "operations"), "cannot have 0 rows"),
        (Step(1, "decode", rows=(Row(0, "x", 5),)), "held by request r0, not x"),
    ],
)
def test_steps_that_do_not_fit_are_refused(step: Step, message: str, llama: Requests) -> None:
    house = house_with(llama, 5, 9)
    house.apply(Compose(1, (1,), 300))
    with pytest.raises(RemoteScheduleError, match=message):
        house.caches_for(step)


@pytest.mark.parametrize("name", ["gemma3_text", "falcon_h1"])
@pytest.mark.parametrize("together", [False, True])
def test_a_step_described_in_vain_can_be_taken_back(name: str, together: bool) -> None:
    requests = requests_of(name)
    found = []
    for in_vain in (False, True):
        house = house_with(requests, 12, 6)
        if together:
            house.apply(Compose(0, (0, 1), 300))
        step = decode((0, 1), (12, 6), 0) if together else decode((0,), (12,))
        caches = house.caches_for(step)
        if in_vain:
            snapshot = house.snapshot(step)
            caches.advance(1)
            placeholder = mx.full((len(step.rows), 1), 9)
            requests.model(placeholder, cache=caches.entries)  # never evaluated
            with pytest.raises(RemoteScheduleError):
                house.caches_for(step)
            snapshot.restore()
            with pytest.raises(LocalStageError, match="twice"):
                snapshot.restore()
        assert house.caches_for(step) is caches
        found.append(requests.decode(caches, [3] * len(step.rows), 6))
    assert found[0] == found[1]


def test_a_batch_has_room_for_its_capacity_only(llama: Requests) -> None:
    house = house_with(llama, 5, 9)
    house.apply(Compose(0, (0, 1), 11))
    caches = house.caches_for(decode((0, 1), (5, 9), 0))
    llama.decode(caches, [4, 4], 2)
    with pytest.raises(LocalStageError, match="1 tokens after 11 are more than the 11"):
        caches.advance(1)


def test_caches_that_keep_their_room_are_not_converted() -> None:
    requests = requests_of("llama")
    with exact_memory():
        house = house_with(requests, 270)
        held = house.nbytes
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        house.apply(Close(0, "r0", keep_as=1, keep_tokens=200, keep_reserve_tokens=300))
        assert house.nbytes == held
        house.apply(opened(2, reuse=Reuse(1, 100)))
        assert house.nbytes == held
        assert mx.get_peak_memory() <= before
        house.apply(Close(2, "r2", keep_as=1, keep_tokens=100, keep_reserve_tokens=100))
        assert house.nbytes == held // 2


def test_decoding_a_batch_allocates_nothing_and_composing_one_cache_at_a_time() -> None:
    requests = requests_of("llama")
    with exact_memory():
        house = house_with(requests, 270, 300)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        house.apply(Compose(0, (0, 1), 600))
        held = house.nbytes
        layer_bytes = held // 6
        singles = 2 * 512 * layer_bytes // (2 * 768)  # of one layer, before
        assert mx.get_peak_memory() <= before + held - 6 * singles + singles + 10_000
        caches = house.caches_for(decode((0, 1), (270, 300), 0))
        requests.decode(caches, [4, 4], 2)
        idle = mx.get_active_memory()
        requests.decode(caches, [4, 4], 20)
        assert mx.get_active_memory() <= idle + 1000
        assert house.nbytes == held


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next"])
def test_ghosts_of_a_split_batch_stay_in_step(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", name)
    requests = requests_of(name)
    layers = requests.anatomy.layer_count
    cut = layers // 2 + 1
    stages = [load_stage(folder, *part, layers) for part in ((0, cut), (cut, layers))]
    prompts = [prompt(name, 5), prompt(name, 19)]
    singles = [[stage.make_caches(60) for _ in prompts] for stage in stages]

    def step(inputs: mx.array, caches: list[Any]) -> Any:
        outputs = [inputs]
        for stage, held in zip(stages, caches, strict=True):
            outputs = stage.step(outputs, held)
            stage.evaluate(outputs, held)
        return mx.argmax(outputs[0][:, -1], axis=-1).tolist()

    for index, tokens in enumerate(prompts):
        for part in (tokens[:4], tokens[4:-1]):
            if part:
                step(mx.array([part]), [held[index] for held in singles])
    batches = [compose([BatchRow(single) for single in held], 60).batch for held in singles]
    last, found = [tokens[-1] for tokens in prompts], []
    for _ in range(12):
        last = step(mx.array(last)[:, None], batches)
        found.append(last)

    alone = [requests.alone(tokens, 12) for tokens in prompts]
    assert [list(row) for row in zip(*found, strict=True)] == alone
    whole = compose([BatchRow(requests_at(requests, tokens)) for tokens in prompts], 60).batch
    assert whole is not None
    assert sum(batch.nbytes for batch in batches if batch) == whole.nbytes


def requests_at(requests: Requests, tokens: list[int]) -> StageCaches:
    caches = requests.caches(60)
    requests.prefill(tokens, caches)
    return caches


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("llama", CacheTraits("", None)),
        ("gemma3_text", CacheTraits("", 7)),
        ("qwen3_next", CacheTraits("", 0)),
        ("llama4", CacheTraits("mlx-lm has no batch cache for ChunkedKVCache", 16)),
        ("deepseek_v41", CacheTraits("mlx-lm has no batch cache for LayerCache", 0)),
        ("gemma2", CacheTraits("mlx-lm adds a batch's mask to scores of another shape", None)),
    ],
)
def test_traits_tell_what_caches_allow(name: str, traits: CacheTraits) -> None:
    requests = requests_of(name)
    assert cache_traits(requests.caches(1).entries, requests.anatomy.architecture) == traits


def test_what_was_dropped_cannot_be_cut_back_to() -> None:
    requests = requests_of("gemma3_text")
    caches = requests.caches(40)
    requests.prefill(prompt("gemma3_text", 12), caches)
    assert caches.can_trim_to(11)
    with pytest.raises(LocalStageError, match="allow that up to a length of 7"):
        caches.trim_to(10)
    with pytest.raises(LocalStageError, match="11 tokens do not fit a reservation of 10"):
        caches.resized(10)


@pytest.mark.parametrize(
    ("name", "overrides"), [("qwen3", {"head_dim": 64}), ("qwen3_next", {"head_dim": 64})]
)
def test_quantised_caches_give_what_mlx_lms_own_give(name: str, overrides: dict[str, Any]) -> None:
    model = build_model(name, **overrides)
    requests = Requests(model, examine(model), kv_bits=8)
    tokens = prompt(name, 15)
    caches = requests.caches(400)
    assert cache_traits(caches.entries).unbatchable == "mlx-lm has no batch cache for QuantizedKVCache"
    requests.prefill(tokens, caches)
    found = requests.decode(caches, tokens[-1:], 8)[0]

    plain = Requests(model, requests.anatomy)
    entries = plain.caches(400).entries
    own = [
        CACHES.QuantizedKVCache(group_size=64, bits=8) if type(entry) is CACHES.KVCache else entry
        for entry in entries
    ]
    theirs = StageCaches(own, caches.owned, 400)
    plain.prefill(tokens, theirs)
    assert found == plain.decode(theirs, tokens[-1:], 8)[0]
    quantised = [entry for entry in caches.entries if type(entry) is CACHES.QuantizedKVCache]
    assert quantised
    assert {entry.keys[0].shape[2] for entry in quantised} == {512}
    assert caches.nbytes < requests_at(plain, tokens).resized(400).nbytes


@pytest.mark.parametrize("name", ["gemma3_text", "llama4", "deepseek_v41"])
def test_caches_that_cannot_be_quantised_are_refused(name: str) -> None:
    model = build_model(name)
    anatomy = examine(model)
    with pytest.raises(
        LocalStageError, match=r"cannot quantise a cache of the class \w+: load without kv_bits"
    ):
        make_caches(model, anatomy, range(anatomy.layer_count), 40, kv_bits=8)
