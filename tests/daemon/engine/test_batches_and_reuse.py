"""Kept caches give what each request gives alone; and the exceptions from batches are none too many."""

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.unbatchable import REASONS
from zoo.batchtable import CUT_DEPENDENT, Requests, compare, prompt
from zoo.reuse import compare_reuse
from zoo.splits import uncompiled

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


@pytest.mark.parametrize("name", REASONS)
def test_what_runs_alone_does_so_for_a_reason(name: str) -> None:
    assert not compare(name, force=True).equal, "an exception that works is none"


@pytest.mark.parametrize("name", [*KINDS, "longcat_flash_ngram"])
def test_an_entry_taken_up_equals_the_prompt_from_its_beginning(name: str) -> None:
    requests = Requests.of(name)
    with uncompiled():
        difference, cuttable = compare_reuse(requests, name)
    assert not difference
    assert cuttable == (cache_traits(requests.caches(1).entries).trim_below_tokens != 0)


@pytest.mark.parametrize("name", CUT_DEPENDENT)
def test_what_depends_on_the_steps_does_so_without_this_project(name: str) -> None:
    requests = Requests.of(name)
    tokens = mx.array([prompt(name, 24)])
    logits = []
    for cuts in ((24,), (11, 13), tuple([1] * 24)):
        caches: Any = make_prompt_cache(requests.model)
        start = 0
        for count in cuts:
            out = requests.model(tokens[:, start : start + count], cache=caches)
            start += count
        logits.append(out[0, -1])
    assert not all(mx.allclose(logits[0], other, rtol=1e-3, atol=1e-3).item() for other in logits[1:])
