"""What the cache of one layer costs, as data.

A layer's cache is a list of pieces. Each piece is one cache object of mlx-lm and one of six kinds, whose
sizes follow the classes of mlx-lm's ``models/cache.py`` (the last one of ``models/deepseek_v41.py``):

* ``growing`` (``KVCache``): every token is kept. The engine preallocates it to the request's reservation,
  rounded up to `step_tokens`, so its size never changes while the request lives.
* ``ring`` (``RotatingKVCache``): the last `window_tokens` are kept. A prefill step of ``s`` tokens leaves
  ``min(kept, window - 1) + s`` rows; the next single token cuts them to the window. Below the window it grows
  by up to `step_tokens` rows.
* ``chunked`` (``ChunkedKVCache``): at most `window_tokens` survive from one step to the next.
* ``constant`` (``ArraysCache``): recurrent states, whatever the context.
* ``recent`` (``ArraysCache``): the last `window_tokens` inputs, never more.
* ``compressed`` (``LayerCache``): the last `window_tokens`, one compressed row for every full group of
  `group_tokens`, and the rows of the group that is still open.

A state may be a slice of what a step computed; the whole buffer then lives as long as the slice does. These
*views* are counted by the tokens of the step. The engine copies states after a prefill step, so between steps
only the views of a one-token step remain.

All sizes are of one request. A cache of a batch of B has B times the bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from macmesh_placement.cacherows import chunked_rows, growing_rows, ring_rows, round_up
from macmesh_placement.checks import Reader, require_integer
from macmesh_placement.errors import LocalProfileError

CacheKind = Literal["growing", "ring", "chunked", "constant", "recent", "compressed"]

#: Rows that mlx-lm's caches allocate at once (``step`` of the cache classes).
ALLOCATION_STEP_TOKENS = 256


_WINDOWED = frozenset({"ring", "chunked", "recent", "compressed"})
#: Fields that are counts of at least 0.
_COUNTS = (
    "bytes_per_token",
    "constant_bytes",
    "view_bytes_per_token",
    "small_view_bytes_per_token",
    "small_view_limit_bytes",
    "decode_view_bytes",
    "array_count",
    "group_bytes",
    "pending_bytes_per_token",
    "heads",
    "key_dim",
    "value_dim",
    "item_bytes",
)


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
        view_bytes_per_token: Bytes that a step keeps alive behind views, for each of its tokens, until the
            engine copies them (``ring``: a step that finds the cache empty only).
        small_view_bytes_per_token: The same of states that the model itself makes contiguous: mlx leaves
            such a view alone where it wastes little.
        small_view_limit_bytes: Most that these keep alive, whatever the step.
        decode_view_bytes: Bytes that a step of one token keeps alive behind views.
        array_count: Arrays it consists of; each may lose up to a page to the allocator.
        group_tokens: ``compressed``: tokens that become one compressed row.
        group_bytes: ``compressed``: bytes of one compressed row, index key included.
        pending_bytes_per_token: ``compressed``: bytes of one row of the open group.
        heads: ``growing``: heads of keys and values.
        key_dim: ``growing``: elements of one head's key.
        value_dim: ``growing``: elements of one head's value.
        item_bytes: ``growing``: bytes of one element of a key.
    """

    kind: CacheKind
    source: str
    bytes_per_token: int = 0
    constant_bytes: int = 0
    step_tokens: int = ALLOCATION_STEP_TOKENS
    window_tokens: int | None = None
    view_bytes_per_token: int = 0
    small_view_bytes_per_token: int = 0
    small_view_limit_bytes: int = 0
    decode_view_bytes: int = 0
    array_count: int = 2
    group_tokens: int = 1
    group_bytes: int = 0
    pending_bytes_per_token: int = 0
    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    item_bytes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(CacheKind):
            raise LocalProfileError(f"cache kind must be one of {get_args(CacheKind)}, not {self.kind!r}")
        for name in _COUNTS:
            require_integer(getattr(self, name), f"cache {name}", LocalProfileError)
        for name in ("step_tokens", "group_tokens"):
            require_integer(getattr(self, name), f"cache {name}", LocalProfileError, minimum=1)
        if (self.kind in _WINDOWED) != (self.window_tokens is not None):
            raise LocalProfileError(
                f"cache window_tokens must be given for {', '.join(sorted(_WINDOWED))} only, "
                f"not for {self.kind}"
            )
        if self.window_tokens is not None:
            require_integer(self.window_tokens, "cache window_tokens", LocalProfileError, minimum=1)

    def view_bytes(self, step_tokens: int) -> int:
        """Most bytes that a step of so many tokens leaves alive behind views, beside what is reported."""
        if step_tokens == 1:
            return self.decode_view_bytes
        small = min(self.small_view_bytes_per_token * step_tokens, self.small_view_limit_bytes)
        return self.view_bytes_per_token * step_tokens + small

    def reserved_bytes(self, context_tokens: int) -> int:
        """Most bytes it holds between steps for a request of at most ``context_tokens``, prefill steps aside.

        Equal to the bytes allocated for ``growing`` (preallocated) and, but for the views of a one-token
        step, for ``constant``; for the windowed kinds the most over every way to split the tokens into prompt
        and output.
        """
        if context_tokens <= 0:
            return 0
        rows = self.bytes_per_token * self._reserved_rows(context_tokens)
        return self.constant_bytes + rows + self._compressed_bytes(context_tokens) + self.decode_view_bytes

    def _compressed_bytes(self, context_tokens: int) -> int:
        pending = min(context_tokens, self.group_tokens - 1)
        return context_tokens // self.group_tokens * self.group_bytes + pending * self.pending_bytes_per_token

    def _reserved_rows(self, context_tokens: int) -> int:
        if self.window_tokens is None:
            return round_up(context_tokens, self.step_tokens)
        if self.kind in {"recent", "compressed"}:
            return min(self.window_tokens, context_tokens)
        if self.kind == "ring":
            return min(self.window_tokens, context_tokens + self.step_tokens - 1)
        return min(self.window_tokens, context_tokens) + self.step_tokens

    def prefill_bytes(self, context_tokens: int, chunk_tokens: int) -> int:
        """Most bytes held beyond `reserved_bytes` while prompts come in steps of at most ``chunk_tokens``.

        The end of a step counts, before the engine copies the states that it left as views.
        """
        if context_tokens <= 0:
            return 0
        chunk = min(chunk_tokens, context_tokens)
        views = self.view_bytes(chunk)
        if self.kind in {"growing", "constant", "recent", "compressed"}:
            return max(0, views - self.decode_view_bytes)
        reserved = self._reserved_rows(context_tokens)
        if self.kind == "ring":
            rows = min(context_tokens, self._window - 1 + chunk)
            first = self.bytes_per_token * chunk + views
            held = max(self.bytes_per_token * rows, first)
            return max(0, held - self.bytes_per_token * reserved)
        window = min(context_tokens, self._window)
        rows = window + chunk - 1 + round_up(chunk, self.step_tokens)
        return max(0, views - self.decode_view_bytes) + self.bytes_per_token * max(0, rows - reserved)

    def lasting_prefill_bytes(self, context_tokens: int, chunk_tokens: int) -> int:
        """As `prefill_bytes`, once the engine has copied the states: what stays until the next step."""
        if self.kind in {"growing", "constant", "recent", "compressed"}:
            return 0
        return self.prefill_bytes(context_tokens, chunk_tokens)

    def passing_prefill_bytes(self, context_tokens: int, chunk_tokens: int) -> int:
        """Most bytes that a prefill step holds until its layer is done: views, and the copies of states."""
        if self.kind in {"growing", "ring", "chunked"}:
            return 0
        copies = self.copied_bytes(context_tokens, chunk_tokens)
        return self.prefill_bytes(context_tokens, chunk_tokens) + copies

    @property
    def _window(self) -> int:
        """`window_tokens`, 0 where there is none."""
        return self.window_tokens or 0

    def copied_bytes(self, context_tokens: int, chunk_tokens: int) -> int:
        """Most bytes that a step of at most ``chunk_tokens`` holds twice while it runs through the layer.

        A new array takes the place of the old one: a state and its copy, a window and the next one,
        compressed rows and the longer array.
        """
        if context_tokens <= 0 or self.kind == "growing":
            return 0
        if self.kind in {"constant", "recent", "compressed"}:
            return self.reserved_bytes(context_tokens)
        chunk = min(chunk_tokens, context_tokens)
        return self.reserved_bytes(context_tokens) + self.prefill_bytes(context_tokens, chunk)

    def read_bytes(self, context_tokens: int) -> int:
        """Bytes that decoding one token reads with ``context_tokens`` in the cache."""
        rows = context_tokens if self.window_tokens is None else min(context_tokens, self.window_tokens)
        return self.constant_bytes + self.bytes_per_token * rows + self._compressed_bytes(context_tokens)

    def bytes_after(self, updates: Sequence[int], *, reserve_tokens: int = 0, batch: int = 1) -> int:
        """The exact bytes that the cache reports (``nbytes``) after steps of the given numbers of tokens.

        Args:
            updates: Tokens of each step, in order.
            reserve_tokens: Tokens that the engine preallocated (``growing`` only; 0: nothing was
                preallocated).
            batch: Requests in the cache, all of the same length.
        """
        if not updates:
            reserved = round_up(reserve_tokens, self.step_tokens) if reserve_tokens else 0
            return batch * self.bytes_per_token * reserved
        if self.kind == "growing":
            rows = growing_rows(updates, self.step_tokens, reserve_tokens)
        elif self.kind == "ring":
            rows = ring_rows(updates, self.step_tokens, self._window)
        elif self.kind == "chunked":
            rows = chunked_rows(updates, self.step_tokens, self._window)
        else:
            rows = min(sum(updates), self._window)
        groups, pending = divmod(sum(updates), self.group_tokens)
        compressed = groups * self.group_bytes + pending * self.pending_bytes_per_token
        return batch * (self.constant_bytes + self.bytes_per_token * rows + compressed)

    def to_json(self) -> dict[str, Any]:
        """The piece as a JSON object."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in fields.items() if name in _ALWAYS or value != _DEFAULTS[name]}

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
            step_tokens=reader.integer("step_tokens", minimum=1),
            window_tokens=reader.optional_integer("window_tokens", minimum=1),
            group_tokens=reader.integer("group_tokens", default=1, minimum=1),
            **{name: reader.integer(name, default=_DEFAULTS.get(name)) for name in _COUNTS},
        )


#: Fields that a piece's JSON always has; the others are written where they are not their default.
_ALWAYS = ("kind", "source", "bytes_per_token", "constant_bytes", "step_tokens", "window_tokens")
_DEFAULTS: dict[str, Any] = {
    name: entry.default
    for name, entry in CachePiece.__dataclass_fields__.items()
    if name not in {"kind", "source", "bytes_per_token", "constant_bytes"}
}
