import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.detokenizer import ByteLevelDetokenizer, StreamDetokenizer, WindowDetokenizer
from macmesh_daemon.models.stop_matcher import StopMatcher
from macmesh_daemon.models.tokenizer import ModelTokenizer
from tokenizer_files import write_sentencepiece_like


@pytest.fixture(scope="module")
def byte_level() -> ModelTokenizer:
    return ModelTokenizer.from_folder(demo_model_folder())


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("sentencepiece")
    write_sentencepiece_like(folder)
    return ModelTokenizer.from_folder(folder)


def pieces(detokenizer: StreamDetokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.flush()]


@given(ids=st.lists(st.integers(0, 1023), max_size=40))
def test_byte_level_pieces_add_up_to_the_decoding(byte_level: ModelTokenizer, ids: list[int]) -> None:
    detokenizer = byte_level.stream_detokenizer()
    assert isinstance(detokenizer, ByteLevelDetokenizer)
    assert "".join(pieces(detokenizer, ids)) == byte_level.decode(ids)


@given(ids=st.lists(st.integers(0, 399), max_size=40))
@example(ids=[3 + 0xE2, 3 + 0x82, 3 + 0xAC, 3 + 0x80])
@example(ids=[3 + 0xEF, 3 + 0xBF, 3 + 0xBD, 280])
def test_sentencepiece_pieces_add_up_to_the_decoding(sentencepiece: ModelTokenizer, ids: list[int]) -> None:
    detokenizer = sentencepiece.stream_detokenizer()
    assert isinstance(detokenizer, WindowDetokenizer)
    assert "".join(pieces(detokenizer, ids)) == sentencepiece.decode(ids)


@given(text=st.text("the plan\né€中\N{GRINNING FACE}\N{ZERO WIDTH JOINER}", max_size=40))
def test_no_piece_of_good_text_is_broken(
    byte_level: ModelTokenizer, sentencepiece: ModelTokenizer, text: str
) -> None:
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer.encode(text, add_special_tokens=False)
        streamed = pieces(tokenizer.stream_detokenizer(), ids)
        broken = "\N{REPLACEMENT CHARACTER}"
        assert sum(piece.count(broken) for piece in streamed) == tokenizer.decode(ids).count(broken)


def test_a_character_waits_for_its_last_byte(byte_level: ModelTokenizer) -> None:
    ids = byte_level.encode("\N{GRINNING FACE}")
    assert len(ids) == 4
    assert pieces(byte_level.stream_detokenizer(), ids) == ["", "", "", "\N{GRINNING FACE}", ""]
    assert pieces(byte_level.stream_detokenizer(), ids[:3]) == ["", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_spaces_between_words_survive_the_window(sentencepiece: ModelTokenizer) -> None:
    ids = sentencepiece.encode("the nodes elect a plan")
    assert "".join(pieces(sentencepiece.stream_detokenizer(), ids)) == "the nodes elect a plan"


def test_special_and_unknown_ids_add_nothing(
    byte_level: ModelTokenizer, sentencepiece: ModelTokenizer
) -> None:
    for tokenizer in (byte_level, sentencepiece):
        assert pieces(tokenizer.stream_detokenizer(), [0, 1, 2, 999_999]) == ["", "", "", "", ""]


def run(stops: list[str], chunks: list[str]) -> tuple[str, bool]:
    matcher, shown = StopMatcher(stops), ""
    for chunk in chunks:
        result = matcher.push(chunk)
        shown += result.text
        assert result.stopped == matcher.stopped
    return shown + matcher.flush(), matcher.stopped


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ([], "all of it", ("all of it", False)),
        (["END"], "say END now", ("say ", True)),
        (["END"], "say EN", ("say EN", False)),
        (["aab"], "aaab", ("a", True)),
        (["abc", "b"], "abc", ("a", True)),
        (["b", "ab"], "ab", ("", True)),
        (["\n\n"], "one\n\ntwo\n\n", ("one", True)),
    ],
)
def test_text_is_cut_at_the_stop_text(stops: list[str], text: str, expected: tuple[str, bool]) -> None:
    assert run(stops, [text]) == expected
    assert run(stops, list(text)) == expected


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    chunks=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_the_cut_does_not_depend_on_the_pieces(stops: list[str], chunks: list[str]) -> None:
    text = "".join(chunks)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    assert run(stops, chunks) == (expected, bool(ends))


@given(stop=st.text("ab", min_size=1, max_size=4), chunks=st.lists(st.text("ab", max_size=3), max_size=8))
def test_nothing_is_shown_that_may_begin_a_stop_text(stop: str, chunks: list[str]) -> None:
    matcher, shown, seen = StopMatcher([stop]), "", ""
    for chunk in chunks:
        shown += matcher.push(chunk).text
        seen += chunk
        held = seen[len(shown) :]
        if not matcher.stopped:
            assert len(held) < len(stop)
            assert not held or stop.startswith(held)
            assert not any(seen.endswith(stop[:length]) for length in range(len(held) + 1, len(stop)))


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a. b").text == "a"
    assert matcher.push("c").text == ""
    assert matcher.flush() == ""


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
