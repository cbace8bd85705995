"""Takes up kept caches with every architecture, and compares with the same prompt from its beginning."""

from macmesh_daemon.engine.cache_house import CacheHouse
from macmesh_daemon.engine.cache_traits import cache_traits
from macmesh_daemon.engine.caches import StageCaches
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.steps import Close, Open, Reuse, Row, Step
from zoo.batchtable import Requests, prompt

RESERVE_TOKENS = 40
LONG_TOKENS, NEW_TOKENS, MORE_TOKENS = 11, 4, 4
GREEDY = Sampling()


def compare_reuse(requests: Requests, name: str) -> tuple[str, bool]:
    """What differs between taking up an entry and beginning anew, empty where nothing; whether entries can be cut."""
    limit = cache_traits(requests.caches(1).entries).trim_below_tokens
    whole = _difference(requests, name, LONG_TOKENS, None)
    if limit == 0:
        return whole, False
    # Its prompt, one token generated, and one more that was computed in vain.
    length = LONG_TOKENS if limit is None else min(LONG_TOKENS, limit - 2)
    return whole or _difference(requests, name, length, length - 2), True


def _difference(requests: Requests, name: str, prompt_tokens: int, cut: int | None) -> str:
    house = CacheHouse(requests.caches, 2)
    first = prompt(name, prompt_tokens)
    house.apply(Open(0, "a", RESERVE_TOKENS, GREEDY))
    caches = _caches(house, "a", 0)
    requests.prefill(first, caches)
    generated = requests.decode(caches, first[-1:], 2)[0]
    kept = [*first, generated[0]]
    house.apply(Close(0, "a", keep_as=7, keep_tokens=len(kept)))
    held = house.nbytes
    reused = len(kept) if cut is None else cut
    second = [*kept[:reused], *prompt(name, MORE_TOKENS)]
    house.apply(Open(1, "b", len(second) + NEW_TOKENS, GREEDY, reuse=Reuse(7, reused)))
    caches = _caches(house, "b", reused)
    requests.prefill(second, caches)
    found = requests.decode(caches, second[-1:], NEW_TOKENS)[0]
    wanted = requests.alone(second, NEW_TOKENS)
    if found == wanted and held:
        return ""
    return f"{reused} tokens of {len(kept)} taken up: {found}, anew: {wanted}"


def _caches(house: CacheHouse, request_id: str, offset: int) -> StageCaches:
    row = Row(0 if request_id == "a" else 1, request_id, offset)
    caches = house.caches_for(Step(1, "prefill", rows=(row,), tokens=(0,)))
    assert isinstance(caches, StageCaches)
    return caches
