"""deepseek_v41: layers write compressed keys and choices among them into a dict, for later layers to read.

Which layer reads what, and from which, follows from the config; mlx-lm's own pipeline asks the same functions.
Choices of one step are sent. Compressed keys grow with the context, so there is no cut between the layer that
keeps them and those that read them.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models import deepseek_v41

from macmesh_daemon.engine.adapters.base import Limit, Nothing

_GROWING = frozenset({"compress_kv", "index_k"})
_CANDIDATES = "candidates"
_CHOSEN = "topk_idx"


class CompressedKeys(Nothing):
    """The dict of one model.

    Args:
        args: the model's.
    """

    def __init__(self, args: Any) -> None:
        self._args = args

    @property
    def limit(self) -> Limit:
        """Where nothing that grows would cross."""
        cuts = range(1, self._args.num_hidden_layers)
        allowed = frozenset(cut for cut in cuts if not _GROWING & self._sources(cut).keys())
        return Limit(allowed, "layers read compressed keys of earlier ones, and stay in one stage with them")

    def note(self, _index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Rows and tokens of the step, and the dict as it is now."""
        return args[0].shape[:2], dict(kwargs["shared"])

    def pack(self, cut: int, notes: list[Any]) -> list[mx.array]:
        """The choices that are read later; of candidates one flag for each block."""
        size, shared = notes[0]
        block = self._args.candidate_block_size
        strides = {_CANDIDATES: block, _CHOSEN: 1}
        return [_packed(shared.get(key), strides[key], size) for key in self._keys(cut)]

    def give(
        self, index: int, cut: int, arrays: list[mx.array], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """With the dict filled, at the first layer; the later ones get the same dict."""
        if index != cut:
            return args, kwargs
        for key, array in zip(self._keys(cut), arrays, strict=True):
            value: mx.array | None = array[..., :-1]
            if key == _CANDIDATES:
                value = self._candidates(cut, array[..., :-1].astype(mx.bool_), kwargs["start_pos"])
            if value is not None:
                kwargs["shared"][key] = value
        return args, kwargs

    def depends_on_history(self, cut: int) -> bool:
        """The choices are among all that was compressed so far."""
        return bool(self._keys(cut))

    def bytes_per_token(self, cut: int, traced_bytes: int) -> int:
        """At the longest context."""
        args, sources = self._args, self._sources(cut)
        more = 0
        if _CHOSEN in sources:
            more += args.index_topk * mx.int32.size
        if _CANDIDATES in sources:
            keys = self._index_keys(sources[_CANDIDATES], args.max_position_embeddings)
            more += -(-keys // args.candidate_block_size)
        return traced_bytes + more

    def _sources(self, cut: int) -> dict[str, int]:
        found: dict[str, int] = deepseek_v41._crossing(self._args, cut)  # noqa: SLF001  mlx-lm's own rule
        return found

    def _keys(self, cut: int) -> list[str]:
        return sorted(self._sources(cut).keys() - _GROWING)

    def _index_keys(self, layer: int, position: int) -> int:
        found: int = deepseek_v41._index_keys(self._args, layer, position)  # noqa: SLF001  mlx-lm's own rule
        return found

    def _candidates(self, cut: int, flags: mx.array, start: int) -> mx.array | None:
        position = start + flags.shape[1]
        keys = self._index_keys(self._sources(cut)[_CANDIDATES], position)
        return mx.repeat(flags, self._args.candidate_block_size, axis=-1)[..., :keys] if keys else None


def _packed(value: mx.array | None, stride: int, size: tuple[int, ...]) -> mx.array:
    # One column more than there are choices: before the first key there are none, and no lane carries nothing.
    if value is None:
        return mx.zeros((*size, 1), mx.uint8)
    strided = value[..., ::stride]
    if strided.dtype == mx.bool_:
        strided = strided.astype(mx.uint8)
    return mx.concatenate([strided, mx.zeros((*strided.shape[:-1], 1), strided.dtype)], axis=-1)
