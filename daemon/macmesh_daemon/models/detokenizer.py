"""Token ids to text, as they arrive."""

import codecs
import re
from typing import Protocol

from tokenizers import Tokenizer, decoders

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class StreamDetokenizer(Protocol):
    """Turns ids into pieces of text, one at a time.

    The pieces, with that of `flush`, add up to the tokenizer's decoding of all ids at once, special tokens
    skipped. No piece ends inside a character. One object serves one request.
    """

    def add(self, token_id: int) -> str:
        """The text that has become final with this id, often empty; an unknown id adds nothing."""
        ...

    def flush(self) -> str:
        """What is left when no more ids come; unfinished characters come out as U+FFFD."""
        ...


def stream_detokenizer(tokenizer: Tokenizer) -> StreamDetokenizer:
    """A fresh detokenizer of the kind that the tokenizer's decoder needs."""
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return ByteLevelDetokenizer(tokenizer)
    return WindowDetokenizer(tokenizer)


class ByteLevelDetokenizer:
    """For byte-level BPE: a token is a run of bytes, so the text is UTF-8 decoded as the bytes come in."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = _special_ids(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """See `StreamDetokenizer`."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""
        if all(character in _BYTE_OF_CHARACTER for character in token):
            return self._decoder.decode(bytes(_BYTE_OF_CHARACTER[character] for character in token))
        return self._decoder.decode(token.encode())

    def flush(self) -> str:
        """See `StreamDetokenizer`."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class WindowDetokenizer:
    """For every other decoder, SentencePiece-like ones above all: decodes a window of the last few tokens.

    A token's text can depend on the one before it (a leading space is stripped at the start only), so a
    window starts with the tokens of the piece before, and what they decode to by themselves is cut off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special_ids = _special_ids(tokenizer)
        self._context: list[int] = []
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """See `StreamDetokenizer`."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""
        self._pending.append(token_id)
        # A run of byte tokens is decoded as a whole: one bad byte turns all of them into U+FFFD.
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        return self._settle(final=False)

    def flush(self) -> str:
        """See `StreamDetokenizer`."""
        return self._settle(final=True)

    def _settle(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode(self._context + self._pending)
        piece = text[len(before) :]
        if not piece or (piece.endswith(_REPLACEMENT) and not final):
            return piece if final else ""
        self._context, self._pending = self._pending, []
        return piece


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable Latin-1 for itself, the other bytes from U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
