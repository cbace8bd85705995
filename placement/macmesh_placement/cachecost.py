"""What the cache of one layer costs, as data.

A layer's cache is a list of pieces. Each piece is one cache object of mlx-lm and one of four kinds, whose
sizes follow the classes of mlx-lm's ``models/cache.py``:

* ``growing`` (``KVCache``): every token is kept. The engine preallocates it to the request's reservation,
  rounded up to `step_tokens`, so its size never changes while the request lives.
* ``ring`` (``RotatingKVCache``): the last `window_tokens` are kept. A prefill step of ``s`` tokens leaves
  ``min(kept, window - 1) + s`` rows; the next single token cuts them to the window. Below the window it grows
  by up to `step_tokens` rows.
* ``chunked`` (``ChunkedKVCache``): at most `window_tokens` survive from one step to the next.
* ``constant`` (``ArraysCache``): recurrent states, whatever the context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from macmesh_placement.checks import Reader, require_integer
from macmesh_placement.errors import LocalProfileError

CacheKind = Literal["growing", "ring", "chunked", "constant"]

#: Rows that mlx-lm's caches allocate at once (``step`` of the cache classes).
ALLOCATION_STEP_TOKENS = 256


def round_up(count: int, step: int) -> int:
    """The smallest multiple of ``step`` that is not below ``count``."""
    return -(-count // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePiece:
    """One cache object of one layer, for one request.

    Attributes:
        kind: How its size follows the context; see the module's docstring.
        source: Class that was traced, such as ``"KVCache"``.
        bytes_per_token: Bytes of one row of keys and values.
        constant_bytes: Bytes that do not depend on the context.
        step_tokens: Rows allocated at once.
        window_tokens: Most rows kept between steps; None where all are.
        view_bytes_per_token: Bytes per token of the last prefill step that a state keeps alive because it is
            a view into that step's buffer, until the engine copies it.
        array_count: Arrays it consists of; each may lose up to a page to the allocator.
    """

    kind: CacheKind
    source: str
    bytes_per_token: int = 0
    constant_bytes: int = 0
    step_tokens: int = ALLOCATION_STEP_TOKENS
    window_tokens: int | None = None
    view_bytes_per_token: int = 0
    array_count: int = 2

    def __post_init__(self) -> None:
        if self.kind not in get_args(CacheKind):
            raise LocalProfileError(f"cache kind must be one of {get_args(CacheKind)}, not {self.kind!r}")
        for name in ("bytes_per_token", "constant_bytes", "view_bytes_per_token", "array_count"):
            require_integer(getattr(self, name), f"cache {name}", LocalProfileError)
        require_integer(self.step_tokens, "cache step_tokens", LocalProfileError, minimum=1)
        windowed = self.kind in {"ring", "chunked"}
        if windowed != (self.window_tokens is not None):
            raise LocalProfileError(
                f"cache window_tokens must be given for ring and chunked only, not for {self.kind}"
            )
        if self.window_tokens is not None:
            require_integer(self.window_tokens, "cache window_tokens", LocalProfileError, minimum=1)

    def reserved_bytes(self, context_tokens: int) -> int:
        """Most bytes it holds between steps for a request of at most ``context_tokens``, prefill steps aside.

        Equal to the bytes allocated for ``growing`` (preallocated) and ``constant``; for the windowed kinds
        the most over every way to split the tokens into prompt and output.
        """
        if context_tokens <= 0:
            return 0
        return self.constant_bytes + self.bytes_per_token * self._reserved_rows(context_tokens)

    def _reserved_rows(self, context_tokens: int) -> int:
        if self.window_tokens is None:
            return round_up(context_tokens, self.step_tokens)
        if self.kind == "ring":
            return min(self.window_tokens, context_tokens + self.step_tokens - 1)
        return min(self.window_tokens, context_tokens) + self.step_tokens

    def prefill_bytes(self, context_tokens: int, chunk_tokens: int) -> int:
        """Most bytes held beyond `reserved_bytes` while prompts come in steps of at most ``chunk_tokens``."""
        if context_tokens <= 0:
            return 0
        chunk = min(chunk_tokens, context_tokens)
        view = self.view_bytes_per_token * chunk
        if self.window_tokens is None:
            return view
        if self.kind == "ring":
            rows = min(context_tokens, self.window_tokens - 1 + chunk)
        else:
            rows = min(context_tokens, self.window_tokens) + chunk - 1 + round_up(chunk, self.step_tokens)
        return view + self.bytes_per_token * max(0, rows - self._reserved_rows(context_tokens))

    def read_bytes(self, context_tokens: int) -> int:
        """Bytes that decoding one token reads with ``context_tokens`` in the cache."""
        rows = context_tokens if self.window_tokens is None else min(context_tokens, self.window_tokens)
        return self.constant_bytes + self.bytes_per_token * rows

    def bytes_after(self, updates: Sequence[int], *, reserve_tokens: int = 0) -> int:
        """The exact bytes that the cache reports (``nbytes``) after steps of the given numbers of tokens.

        Args:
            updates: Tokens of each step, in order.
            reserve_tokens: Tokens that the engine preallocated (``growing`` only; 0: nothing was
                preallocated).
        """
        if not updates:
            return self.bytes_per_token * round_up(reserve_tokens, self.step_tokens) if reserve_tokens else 0
        rows = {
            "growing": _growing_rows,
            "ring": _ring_rows,
            "chunked": _chunked_rows,
            "constant": _no_rows,
        }[self.kind](updates, self.step_tokens, self.window_tokens or 0, reserve_tokens)
        return self.constant_bytes + self.bytes_per_token * rows

    def to_json(self) -> dict[str, Any]:
        """The piece as a JSON object."""
        return {
            "kind": self.kind,
            "source": self.source,
            "bytes_per_token": self.bytes_per_token,
            "constant_bytes": self.constant_bytes,
            "step_tokens": self.step_tokens,
            "window_tokens": self.window_tokens,
            "view_bytes_per_token": self.view_bytes_per_token,
            "array_count": self.array_count,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "CachePiece":
        """Reads `to_json`'s form.

        Raises:
            LocalProfileError: The object is not a cache piece; the message names the field.
        """
        reader = Reader(value, where, LocalProfileError)
        reader.only(cls.__dataclass_fields__)
        return cls(
            kind=cast("CacheKind", reader.text("kind")),
            source=reader.text("source"),
            bytes_per_token=reader.integer("bytes_per_token"),
            constant_bytes=reader.integer("constant_bytes"),
            step_tokens=reader.integer("step_tokens", minimum=1),
            window_tokens=reader.optional_integer("window_tokens", minimum=1),
            view_bytes_per_token=reader.integer("view_bytes_per_token", default=0),
            array_count=reader.integer("array_count", default=2),
        )


def _no_rows(_updates: Sequence[int], _step: int, _window: int, _reserve: int) -> int:
    return 0


def _growing_rows(updates: Sequence[int], step: int, _window: int, reserve: int) -> int:
    rows, offset = round_up(reserve, step), 0
    for count in updates:
        if offset + count > rows:
            kept = offset if offset % step else rows
            rows = kept + round_up(count, step)
        offset += count
    return rows


def _ring_rows(updates: Sequence[int], step: int, window: int, _reserve: int) -> int:
    rows, offset, index = 0, 0, 0
    for count in updates:
        if count > 1:
            ordered = rows if index == rows or index < offset else index
            rows = min(ordered, window - 1) + count
            index = rows
        else:
            if offset >= rows and rows < window:
                rows += min(step, window - offset)
                index = offset
            if rows > window:
                rows, index = window, window
            index = (0 if index == window else index) + 1
        offset += count
    return rows


def _chunked_rows(updates: Sequence[int], step: int, window: int, _reserve: int) -> int:
    rows, valid = 0, 0
    for count in updates:
        if valid > window:
            rows, valid = window, window
        if valid + count > rows:
            kept = valid if valid % step else rows
            rows = kept + round_up(count, step)
        valid += count
    return rows
