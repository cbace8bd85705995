"""Rows of batches and kept caches give what each request gives alone, for every architecture of the pinned mlx-lm."""

import pytest

from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.unbatchable import REASONS
from zoo import CONFIGS
from zoo.batchtable import NOT_COMPUTED, Requests, compare
from zoo.reuse import compare_reuse

COMPUTED = [name for name in CONFIGS if name not in NOT_COMPUTED]
#: One of every combination of kinds of caches, and those that run alone only.
KINDS = (
    "llama",
    "gemma3_text",
    "gpt_oss",
    "llama4",
    "deepseek_v41",
    "qwen3_next",
    "recurrent_gemma",
    "falcon_h1",
)


@pytest.mark.parametrize("name", COMPUTED)
def test_batches_equal_each_request_alone(name: str) -> None:
    row = compare(name)
    assert row.equal or row.unbatchable, row.reason


@pytest.mark.parametrize("name", REASONS)
def test_what_runs_alone_does_so_for_a_reason(name: str) -> None:
    assert not compare(name, force=True).equal, "an exception that works is none"


@pytest.mark.parametrize("name", [*KINDS, *REASONS, "longcat_flash_ngram"])
def test_an_entry_taken_up_equals_the_prompt_from_its_beginning(name: str) -> None:
    requests = Requests.of(name)
    difference, cuttable = compare_reuse(requests, name)
    assert not difference
    assert cuttable == (cache_traits(requests.caches(1).entries).trim_below_tokens != 0)
