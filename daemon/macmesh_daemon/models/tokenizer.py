"""A model's tokenizer: text and conversations to the token ids that unmodified mlx-lm makes of them.

The files of a folder decide: `tokenizer.json` is run as it is; `tokenizer_config.json`,
`special_tokens_map.json`, `chat_template.jinja`, `config.json` and `generation_config.json` add the chat
template and the ids that end a text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer

from macmesh_daemon.models.chat_template import ChatTemplate
from macmesh_daemon.models.detokenizer import StreamDetokenizer, stream_detokenizer
from macmesh_daemon.models.tokenizer_errors import LocalChatTemplateError, LocalTokenizerError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelTokenizer:
    """Encodes for one model. Safe to share between threads.

    Attributes:
        eos_token_ids: The ids after which mlx-lm stops.
        special_tokens: The named special tokens that the folder sets, such as `bos_token`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        eos_token_ids: frozenset[int],
        chat_template: ChatTemplate | None,
        folder: Path,
    ) -> None:
        """Use `from_folder`."""
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._folder = folder
        self.special_tokens = dict(special_tokens)
        self.eos_token_ids = eos_token_ids

    @classmethod
    def from_folder(cls, folder: Path | str) -> Self:
        """Read the tokenizer of a model folder.

        Raises:
            LocalTokenizerError: tokenizer.json is absent or broken, another file is broken, or an end token
                is unknown.
            LocalChatTemplateError: The chat template does not compile.
        """
        folder = Path(folder)
        config, generation = _read_json(folder, "config.json"), _read_json(folder, "generation_config.json")
        tokenizer_config = _read_json(folder, "tokenizer_config.json")
        tokenizer = _read_tokenizer(folder)
        named = _named_tokens(tokenizer_config, _read_json(folder, "special_tokens_map.json"))
        _add_missing_tokens(tokenizer, tokenizer_config, named, folder)
        # mlx-lm's rule: a set value of generation_config.json replaces that of config.json; the tokenizer's
        # own comes on top.
        ends = generation.get("eos_token_id") or config.get("eos_token_id")
        eos_token_ids = frozenset(_token_ids([ends, named.get("eos_token")], tokenizer, folder))
        return cls(
            tokenizer,
            special_tokens=named,
            eos_token_ids=eos_token_ids,
            chat_template=_read_chat_template(folder, tokenizer_config, named),
            folder=folder,
        )

    @property
    def vocab_size(self) -> int:
        """The number of tokens, the added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work."""
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text; special tokens written out in it become special tokens.
            add_special_tokens: Let the tokenizer add what it puts around a text, such as a beginning token.
                None: as mlx-lm does, unless the text begins with the beginning token already.
        """
        if add_special_tokens is None:
            beginning = self.special_tokens.get("bos_token")
            add_special_tokens = beginning is None or not text.startswith(beginning)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, special tokens skipped."""
        return self._tokenizer.decode(list(token_ids))

    def render_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation; see `ChatTemplate.render`.

        Raises:
            LocalChatTemplateError: The model has no chat template, or the template failed.
            RemoteMessagesError: The template refused the messages.
        """
        if self._chat_template is None:
            raise LocalChatTemplateError(
                f"the model in {self._folder} has no chat template;"
                " send a plain prompt, or add a chat_template.jinja"
            )
        return self._chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The ids of a conversation: the template has its special tokens in it, so none are added.

        Raises:
            LocalChatTemplateError: The model has no chat template, or the template failed.
            RemoteMessagesError: The template refused the messages.
        """
        text = self.render_chat_template(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def stream_detokenizer(self) -> StreamDetokenizer:
        """A fresh detokenizer for one request."""
        return stream_detokenizer(self._tokenizer)


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise LocalTokenizerError(
            f"{folder} has no tokenizer.json; add the model's tokenizer.json, or choose a folder that has one"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise LocalTokenizerError(f"{path} cannot be read: {error}; download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a file; empty where the file is absent."""
    path = folder / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LocalTokenizerError(f"{path} cannot be read: {error}; download it again") from error
    if not isinstance(value, dict):
        raise LocalTokenizerError(f"{path} must hold a JSON object; download it again")
    return value


def _named_tokens(tokenizer_config: Mapping[str, Any], tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens; the older file counts only where the newer one is silent."""
    named = {}
    for name in _NAMED_TOKENS:
        token = _content(tokenizer_config[name] if name in tokenizer_config else tokens_map.get(name))
        if token is not None:
            named[name] = token
    return named


def _content(token: Any) -> str | None:
    """The text of a token given as a string or as a serialised AddedToken."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_missing_tokens(
    tokenizer: Tokenizer, tokenizer_config: Mapping[str, Any], named: Mapping[str, str], folder: Path
) -> None:
    """Add tokens that only tokenizer_config.json knows, in the order of their ids."""
    listed = tokenizer_config.get("added_tokens_decoder", {})
    try:
        rows = sorted((int(index), dict(row)) for index, row in listed.items())
        tokens = [
            AddedToken(
                row["content"],
                single_word=row.get("single_word", False),
                lstrip=row.get("lstrip", False),
                rstrip=row.get("rstrip", False),
                normalized=row.get("normalized", True),
                special=row.get("special", False) or row["content"] in named.values(),
            )
            for _, row in rows
            if tokenizer.token_to_id(row["content"]) is None
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LocalTokenizerError(
            f"added_tokens_decoder in {folder / 'tokenizer_config.json'} is broken: {error!r};"
            " download the file again"
        ) from error
    known = {token.content for token in tokens}
    tokens += [
        AddedToken(token, special=True, normalized=False)
        for token in dict.fromkeys(named.values())
        if token not in known and tokenizer.token_to_id(token) is None
    ]
    tokenizer.add_tokens(tokens)


def _token_ids(value: Any, tokenizer: Tokenizer, folder: Path) -> Iterator[int]:
    """The ids in a value: an id, a token, or a list of either; None gives none."""
    if isinstance(value, list):
        for item in value:
            yield from _token_ids(item, tokenizer, folder)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif value is not None:
        token = _content(value)
        token_id = None if token is None else tokenizer.token_to_id(token)
        if token_id is None:
            raise LocalTokenizerError(
                f"the model in {folder} names the end token {value!r}, which tokenizer.json does not have;"
                " correct eos_token_id in generation_config.json"
            )
        yield token_id


def _read_chat_template(
    folder: Path, tokenizer_config: Mapping[str, Any], named: Mapping[str, str]
) -> ChatTemplate | None:
    """The default template: chat_template.jinja wins over the one in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    source: Any
    try:
        source, origin = path.read_text(encoding="utf-8"), path
    except FileNotFoundError:
        source, origin = tokenizer_config.get("chat_template"), folder / "tokenizer_config.json"
    except (OSError, ValueError) as error:
        raise LocalChatTemplateError(f"{path} cannot be read: {error}; download it again") from error
    if isinstance(source, list):
        source = {row.get("name"): row.get("template") for row in source if isinstance(row, Mapping)}
    if isinstance(source, Mapping):
        source = source.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise LocalChatTemplateError(f"the chat template in {origin} is no text; download the file again")
    return ChatTemplate(source, special_tokens=named, origin=f"the chat template in {origin}")
