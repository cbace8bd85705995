"""From tokens to text: nothing of a stop text is shown, nothing certain is held back at the end."""

import pytest

from macmesh.v1 import inference_pb2
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.tokenizer import ModelTokenizer
from macmesh_daemon.node.assembly import Piece, TextAssembler

TOKENIZER = ModelTokenizer.from_folder(demo_model_folder())
TEXT = "A plan is made, and the daemons keep it."
STOP = inference_pb2.FINISH_REASON_STOP
LENGTH = inference_pb2.FINISH_REASON_LENGTH


def _run(ids: list[int], stops: tuple[str, ...] = (), end_ids: frozenset[int] = frozenset()) -> list[Piece]:
    assembler = TextAssembler(TOKENIZER, stops=stops, end_ids=end_ids)
    pieces = []
    for index, token_id in enumerate(ids):
        finish = LENGTH if index == len(ids) - 1 else inference_pb2.FINISH_REASON_UNSPECIFIED
        if token_id in end_ids:
            finish = STOP
        pieces.append(assembler.take(token_id, -1.0, finish))
        if pieces[-1].finish_reason:
            break
    return pieces


def test_the_pieces_are_the_text() -> None:
    pieces = _run(TOKENIZER.encode(TEXT))

    assert "".join(p.text for p in pieces) == TEXT
    assert [p.finish_reason for p in pieces[:-1]] == [0] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == LENGTH


@pytest.mark.parametrize("stop", ["made", ", and", "e", "it."])
def test_a_stop_text_ends_before_itself(stop: str) -> None:
    pieces = _run(TOKENIZER.encode(TEXT), stops=(stop,))

    assert "".join(p.text for p in pieces) == TEXT[: TEXT.index(stop)]
    assert pieces[-1].finish_reason == STOP


def test_what_might_have_become_a_stop_text_comes_at_the_end() -> None:
    pieces = _run(TOKENIZER.encode(TEXT), stops=("it. Then",))

    assert "".join(p.text for p in pieces) == TEXT
    assert pieces[-1].finish_reason == LENGTH


def test_an_end_token_is_told_but_not_shown() -> None:
    [end_id, *_] = sorted(TOKENIZER.eos_token_ids)
    pieces = _run([*TOKENIZER.encode(TEXT), end_id, 5], end_ids=frozenset({end_id}))

    assert "".join(p.text for p in pieces) == TEXT
    assert pieces[-1].token_ids == (end_id,)
    assert pieces[-1].finish_reason == STOP


def test_an_end_without_a_token_brings_what_was_held_back() -> None:
    assembler = TextAssembler(TOKENIZER, stops=("it. Then",), end_ids=frozenset())
    shown = [
        assembler.take(t, -1.0, inference_pb2.FINISH_REASON_UNSPECIFIED).text for t in TOKENIZER.encode(TEXT)
    ]
    end = assembler.take_end(LENGTH)

    assert "".join(shown) + end.text == TEXT
    assert end.token_ids == ()
    assert end.worth_sending


@pytest.mark.parametrize("stops", [(), ("keep",), ("e, and the",), ("it.",), ("it. Then",)], ids=str)
def test_tokens_taken_again_give_the_same_text_from_every_cut_on(stops: tuple[str, ...]) -> None:
    ids = TOKENIZER.encode(TEXT + " \N{GRINNING FACE} kept")
    whole = _run(ids, stops)
    for cut in range(len(whole)):
        assembler = TextAssembler(TOKENIZER, stops=stops, end_ids=frozenset())
        text, stopped = assembler.replay(ids[:cut])
        assert not stopped
        assert text == "".join(piece.text for piece in whole[:cut])
        rest = [
            assembler.take(ids[i], -1.0, LENGTH if i == len(ids) - 1 else 0)  # type: ignore[arg-type]
            for i in range(cut, len(whole))
        ]
        assert rest == whole[cut:]


def test_a_stop_text_among_tokens_taken_again_is_the_end() -> None:
    assembler = TextAssembler(TOKENIZER, stops=("made",), end_ids=frozenset())
    assert assembler.replay(TOKENIZER.encode(TEXT)) == (TEXT[: TEXT.index("made")], True)
