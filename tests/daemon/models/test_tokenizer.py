import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.tokenizer import ModelTokenizer
from macmesh_daemon.models.tokenizer_errors import (
    LocalChatTemplateError,
    LocalTokenizerError,
    RemoteMessagesError,
)
from support.transformers import bring_transformers_in
from tokenizer_files import write_sentencepiece_like

TEXTS = [
    "What is an epoch?",
    "",
    "  leading, trailing  \n\n\t",
    "naïve café, 12345 tokens… \N{GRINNING FACE} \N{REPLACEMENT CHARACTER}",
    "<|im_start|>user\nwritten out<|im_end|>",
    "e\N{COMBINING ACUTE ACCENT} is normalised",
]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is macmesh?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What is a <|im_end|> stage?", "name": None},
    ],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model's small files."""
    for file in demo_model_folder().iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    return tmp_path


def rewrite(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    values |= changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def reference(folder: Path) -> Any:
    return bring_transformers_in().AutoTokenizer.from_pretrained(str(folder))


def test_demo_ids_equal_those_of_transformers(folder: Path) -> None:
    ours, theirs = ModelTokenizer.from_folder(folder), reference(folder)
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert ours.vocab_size == len(theirs)
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == expected


def test_sentencepiece_ids_equal_those_of_transformers(tmp_path: Path) -> None:
    write_sentencepiece_like(tmp_path)
    ours, theirs = ModelTokenizer.from_folder(tmp_path), reference(tmp_path)
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert ours.encode("a plan")[0] == 1


def test_beginning_token_is_not_doubled(tmp_path: Path) -> None:
    write_sentencepiece_like(tmp_path)
    tokenizer = ModelTokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<s>a plan").count(1) == 1
    assert tokenizer.encode("<s>a plan", add_special_tokens=True).count(1) == 2
    assert 1 not in tokenizer.encode("a plan", add_special_tokens=False)


def test_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LocalTokenizerError, match=r"has no tokenizer\.json; add"):
        ModelTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_broken_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(LocalTokenizerError, match=name):
        ModelTokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("config", "generation", "named", "expected"),
    [
        (2, ..., "<|im_end|>", {2}),
        (2, 0, None, {2}),  # mlx-lm takes a 0 there for absent
        ([0, 2], ..., None, {0, 2}),
        (1, [0], None, {0}),
        (..., ["<|endoftext|>", 5], None, {0, 5}),
        (..., ..., {"content": "<|endoftext|>", "__type": "AddedToken"}, {0}),
        ("<|im_end|>", ..., None, {2}),
        (..., ..., None, set()),
    ],
)
def test_end_tokens_in_every_form(
    folder: Path, config: Any, generation: Any, named: Any, expected: set[int]
) -> None:
    rewrite(folder / "config.json", eos_token_id=config)
    rewrite(folder / "generation_config.json", eos_token_id=generation)
    rewrite(folder / "tokenizer_config.json", eos_token=named)
    assert ModelTokenizer.from_folder(folder).eos_token_ids == expected


def test_unknown_end_token_is_an_error(folder: Path) -> None:
    rewrite(folder / "generation_config.json", eos_token_id="<|nothing|>")  # noqa: S106  a token of text
    with pytest.raises(LocalTokenizerError, match="nothing"):
        ModelTokenizer.from_folder(folder)


def test_end_tokens_equal_those_of_mlx_lm(folder: Path) -> None:
    bring_transformers_in()
    from mlx_lm.utils import load_config, load_tokenizer  # noqa: PLC0415  slow to import

    config = load_config(folder)
    expected = load_tokenizer(folder, eos_token_ids=config["eos_token_id"]).eos_token_ids  # type: ignore[no-untyped-call]
    assert ModelTokenizer.from_folder(folder).eos_token_ids == expected


def test_older_special_tokens_map_is_read(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", eos_token=...)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert ModelTokenizer.from_folder(folder).special_tokens["eos_token"] == "<|endoftext|>"  # noqa: S105  a token of text


def test_token_known_to_the_config_only_is_added(folder: Path) -> None:
    rewrite(
        folder / "tokenizer_config.json",
        added_tokens_decoder={"1024": {"content": "<|tool|>", "special": True}},
    )
    tokenizer = ModelTokenizer.from_folder(folder)
    assert tokenizer.encode("a<|tool|>b")[1] == 1024
    assert tokenizer.encode("a<|tool|>b") == reference(folder).encode("a<|tool|>b")


def test_truncation_in_the_file_is_ignored(folder: Path) -> None:
    rewrite(
        folder / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    )
    assert len(ModelTokenizer.from_folder(folder).encode("more than two tokens are here")) > 2


def test_template_file_wins_and_a_list_has_a_default(folder: Path) -> None:
    rewrite(
        folder / "tokenizer_config.json",
        chat_template=[{"name": "tool_use", "template": "no"}, {"name": "default", "template": "listed"}],
    )
    messages = CONVERSATIONS[0]
    assert ModelTokenizer.from_folder(folder).render_chat_template(messages) == "listed"
    (folder / "chat_template.jinja").write_text("{{ eos_token }}{{ messages[0].content }}")
    assert ModelTokenizer.from_folder(folder).render_chat_template(messages) == "<|im_end|>What is macmesh?"


def test_no_template_says_what_to_do(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", chat_template=...)
    tokenizer = ModelTokenizer.from_folder(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(LocalChatTemplateError, match="no chat template; send a plain prompt"):
        tokenizer.apply_chat_template(CONVERSATIONS[0])


def test_message_without_content_fails_clearly(folder: Path) -> None:
    with pytest.raises(LocalChatTemplateError, match="failed on these messages"):
        ModelTokenizer.from_folder(folder).apply_chat_template([{"role": "user"}])
    with pytest.raises(RemoteMessagesError, match="empty"):
        ModelTokenizer.from_folder(folder).apply_chat_template([])
