"""The token log: every token once, in order, before it is told."""

import pytest

from macmesh_daemon.requests import LocalTokenChangedError, LocalTokenGapError, TokenLog


def _log() -> TokenLog:
    return TokenLog(request_id="r", prompt_token_ids=(1, 2), accepted_at=10.0)


def test_tokens_are_kept_once_and_in_order() -> None:
    log = _log()

    assert log.record(0, 5, 11.0)
    assert log.record(1, 6, 12.5)
    assert not log.record(0, 5, 13.0)
    assert log.token_ids == [5, 6]
    assert (log.first_token_seconds, log.decode_seconds) == (1.0, 1.5)


def test_a_gap_is_an_error() -> None:
    log = _log()
    with pytest.raises(LocalTokenGapError, match="token 1 came after token -1"):
        log.record(1, 5, 11.0)


def test_another_token_at_a_known_place_is_an_error() -> None:
    log = _log()
    log.record(0, 5, 11.0)
    with pytest.raises(LocalTokenChangedError, match="token 0 came as 6, it was 5"):
        log.record(0, 6, 12.0)
    assert log.token_ids == [5]


def test_times_of_a_request_without_tokens_are_zero() -> None:
    assert (_log().first_token_seconds, _log().decode_seconds) == (0.0, 0.0)
