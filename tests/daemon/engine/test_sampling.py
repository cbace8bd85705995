from collections import Counter

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.sample_utils import make_logits_processors

from macmesh_daemon.engine.sampling import choose, extended_history, processed, token_key
from macmesh_daemon.engine.sampling_parameters import Sampling, sampling_refusal

PROBABILITIES = [0.5, 0.2, 0.15, 0.1, 0.05]
LOGITS = mx.log(mx.array([PROBABILITIES]))


def drawn(sampling: Sampling, count: int = 150) -> Counter[int | float | complex]:
    return Counter(choose(LOGITS, sampling, index)[0].item() for index in range(count))


def test_greedy_takes_the_most_probable_and_tells_its_probability() -> None:
    token, logprob = choose(LOGITS * 1.0 + 3, Sampling(), 0)
    assert token.item() == 0
    assert mx.exp(logprob).item() == pytest.approx(0.5)


def test_the_same_seed_and_position_give_the_same_token_and_others_do_not() -> None:
    sampling = Sampling(temperature=1.0, seed=7)
    once = [choose(LOGITS, sampling, index)[0].item() for index in range(50)]
    mx.random.seed(123)
    mx.random.normal((10,))
    assert once == [choose(LOGITS, sampling, index)[0].item() for index in range(50)]
    other = [choose(LOGITS, Sampling(temperature=1.0, seed=8), i)[0].item() for i in range(50)]
    assert once != other


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_keys_differ_by_seed_and_by_position(seed: int, index: int) -> None:
    key = token_key(seed, index).tolist()
    assert key == token_key(seed, index).tolist()
    assert key != token_key(seed, index + 1).tolist()
    assert key != token_key((seed + 1) % 2**64, index).tolist()


def test_frequencies_follow_the_probabilities() -> None:
    counts = drawn(Sampling(temperature=1.0, seed=1), 1500)
    for token, probability in enumerate(PROBABILITIES):
        assert counts[token] / 1500 == pytest.approx(probability, abs=0.04)


def test_filters_leave_only_what_they_should() -> None:
    assert set(drawn(Sampling(temperature=1.0, top_k=2))) == {0, 1}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.8))) == {0, 1, 2}
    assert set(drawn(Sampling(temperature=1.0, min_p=0.25))) == {0, 1, 2}
    assert set(drawn(Sampling(temperature=1.0, top_p=1.0, top_k=99))) == {0, 1, 2, 3, 4}


def test_low_temperature_comes_close_to_greedy() -> None:
    assert drawn(Sampling(temperature=0.01)) == {0: 150}


def test_logprob_is_of_the_unfiltered_distribution() -> None:
    token, logprob = choose(LOGITS, Sampling(temperature=0.5, top_k=1), 0)
    assert token.item() == 0
    assert mx.exp(logprob).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        (Sampling(temperature=-1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(temperature=float("inf")), "temperature"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(min_p=-0.1), "min_p"),
    ],
)
def test_nonsense_is_refused(sampling: Sampling, word: str) -> None:
    assert word in sampling_refusal(sampling)


def test_sense_is_taken() -> None:
    assert not sampling_refusal(Sampling(temperature=0.7, top_p=0.9, min_p=0.05, top_k=40, seed=2**64 - 1))


PROCESSED = [
    Sampling(repetition_penalty=1.5),
    Sampling(repetition_penalty=0.5, repetition_context_tokens=3),
    Sampling(presence_penalty=0.7, frequency_penalty=-0.4),
    Sampling(logit_bias=((1, 2.5), (4, -3.0))),
    Sampling(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.9, logit_bias=((0, -1.0),)),
]


@pytest.mark.parametrize("sampling", PROCESSED)
def test_processors_are_those_of_the_reference(sampling: Sampling) -> None:
    logits = mx.random.normal((1, 8), key=mx.random.key(3)) * 4
    before = logits.tolist()
    history = mx.array([1, 1, 2, 7, 1, 3, 3, 0] * 4, mx.uint32)
    expected = mx.array(logits)
    context = sampling.repetition_context_tokens or 20
    for process in make_logits_processors(
        logit_bias=dict(sampling.logit_bias),
        repetition_penalty=sampling.repetition_penalty,
        repetition_context_size=context,
        presence_penalty=sampling.presence_penalty,
        presence_context_size=context,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=context,
    ):
        expected = process(history, expected)
    assert processed(logits, sampling, history).tolist() == expected.tolist()
    assert logits.tolist() == before
    token, logprob = choose(logits, sampling, 0, history)
    assert token.item() == mx.argmax(expected).item()
    plain = (logits - mx.logsumexp(logits))[0][token]
    assert logprob.item() == pytest.approx(plain.item(), abs=1e-5)


def test_history_keeps_what_the_penalties_look_at() -> None:
    sampling = Sampling(frequency_penalty=1.0, repetition_context_tokens=3)
    history = mx.array([], mx.uint32)
    for token in range(5):
        history = extended_history(history, mx.array([token]), sampling)
    assert history.tolist() == [2, 3, 4]
    assert Sampling().history_tokens == Sampling(repetition_penalty=1.0).history_tokens == 0


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        (Sampling(repetition_penalty=-1), "repetition_penalty"),
        (Sampling(repetition_context_tokens=-1), "repetition_context_tokens"),
        (Sampling(presence_penalty=float("nan")), "presence_penalty"),
        (Sampling(frequency_penalty=1e9), "frequency_penalty"),
        (Sampling(logit_bias=((1, 1.0), (1, 2.0))), "logit_bias"),
        (Sampling(logit_bias=((1, float("inf")),)), "logit_bias"),
        (Sampling(logit_bias=tuple((i, 0.0) for i in range(1025))), "1024"),
    ],
)
def test_impossible_processors_are_refused(sampling: Sampling, word: str) -> None:
    assert word in sampling_refusal(sampling)
