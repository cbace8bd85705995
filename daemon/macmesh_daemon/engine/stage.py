"""One stage of a model: its own layers of mlx-lm's own code, the rest passed through."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_map
from mlx_lm.utils import load_model

from macmesh_daemon.engine.anatomy import (
    Anatomy,
    examine,
    modules_by_path,
    own_parameters,
    require_splittable,
    swap_methods,
)
from macmesh_daemon.engine.caches import Caches, StageCaches, arrays_of, make_caches
from macmesh_daemon.engine.errors import LocalModelLoadError, LocalStageError
from macmesh_daemon.engine.files import check_model_files

Progress = Callable[[int, int], None]
"""Is told bytes loaded and bytes to load."""


@dataclasses.dataclass
class _Passing:
    """What crosses the stage in the step that runs."""

    incoming: mx.array | None = None
    outgoing: mx.array | None = None
    caches: Caches | None = None
    tokens: int = 0


class StageModel:
    """Runs layers ``first_layer`` to ``end_layer - 1`` of a model; made by `load_stage`.

    The head takes token ids, the others the hidden state of the stage before. The tail gives logits, the
    others their hidden state. To be used from the thread that loaded it.
    """

    def __init__(self, model: Module, anatomy: Anatomy, first_layer: int, end_layer: int) -> None:
        if not 0 <= first_layer < end_layer <= anatomy.layer_count:
            raise LocalStageError(
                f"layers {first_layer} to {end_layer} are no range of the {anatomy.layer_count} of this model"
            )
        self._model = model
        self._anatomy = anatomy
        self.layers = range(first_layer, end_layer)
        """The layers of this stage."""
        self.is_head = first_layer == 0
        self.is_tail = end_layer == anatomy.layer_count
        self._passing = _Passing()
        if not (self.is_head and self.is_tail):
            require_splittable(anatomy)
        self._cut()
        self._owned = self._owned_parameters()
        self.owned_bytes = sum(array.nbytes for group in self._owned for array in group)
        """Bytes of the weights that this stage needs."""

    @property
    def architecture(self) -> str:
        """Name of the mlx-lm module that implements the model."""
        return self._anatomy.architecture

    def read_weights(self, progress: Progress) -> None:
        """Reads the weights of this stage, and no others, layer by layer."""
        loaded = 0
        progress(loaded, self.owned_bytes)
        for group in self._owned:
            mx.eval(group)
            loaded += sum(array.nbytes for array in group)
            progress(loaded, self.owned_bytes)

    def make_caches(self, reserve_tokens: int) -> StageCaches:
        """New caches for a request of at most so many tokens, prompt and output together."""
        return make_caches(self._model, self._anatomy, self.layers, reserve_tokens)

    def step(self, inputs: mx.array, caches: Caches) -> mx.array:
        """Describes one step; `evaluate` runs it. Of several tokens, the layers run here already.

        Args:
            inputs: at the head token ids, shape (1, tokens); else hidden states, shape (1, tokens, hidden).
            caches: of the request; advanced.

        Returns:
            At the tail logits, shape (1, tokens, vocabulary); else the hidden state. Not evaluated.

        Raises:
            LocalStageError: more tokens than the caches were reserved for.
        """
        tokens = inputs.shape[1]
        caches.advance(tokens)
        passing = self._passing
        passing.caches, passing.tokens = caches, tokens
        if not self.is_head:
            passing.incoming = inputs
            # Never computed: the layers before this stage pass on the hidden state, not what they get.
            inputs = mx.zeros((inputs.shape[0], tokens), mx.int32)
        logits: mx.array = self._model(inputs, cache=caches.entries)
        outgoing, self._passing = passing.outgoing, _Passing()
        if self.is_tail:
            return logits
        if outgoing is None:
            raise LocalStageError(
                f"layer {self.layers[-1]} was not called; {self.architecture} cannot be cut"
            )
        return outgoing

    @staticmethod
    def evaluate(result: mx.array | None, caches: Caches) -> None:
        """Runs what was described: the result, if one is wanted, and the caches."""
        mx.eval([*([] if result is None else [result]), *caches.owned_arrays()])

    def _cut(self) -> None:
        layers = list(self._model.layers)
        owned_caches = {index for layer in self.layers for index in self._anatomy.layer_caches[layer]}
        seen: set[int] = set()
        for index, layer in enumerate(layers):
            if index in self.layers:
                swap_methods(layer, {"__call__": self._owned_layer(index)})
                continue
            ghosts = [
                cache
                for cache in dict.fromkeys(self._anatomy.layer_caches[index])
                if cache not in owned_caches and cache not in seen
            ]
            seen.update(ghosts)
            layer.update(tree_map(lambda weight: mx.zeros(0, weight.dtype), layer.parameters()))
            swap_methods(layer, {"__call__": self._foreign_layer(index < self.layers[0], ghosts)})

    def _owned_layer(self, index: int) -> Callable[..., Any]:
        is_last = index == self.layers[-1]
        cache_indices = self._anatomy.layer_caches[index]

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            passing = self._passing
            if passing.caches is not None and passing.tokens > 1:
                # A prefill step runs layer by layer: the host would else allocate for many layers before the
                # first is done, far beyond what the ledger charges. Nothing needs what the tail's last layer
                # puts out for a part of a prompt.
                passing.caches.copy_states(cache_indices)
                results = [] if is_last and self.is_tail else arrays_of([out])
                mx.eval(results, passing.caches.arrays_at(cache_indices))
            if is_last and not self.is_tail:
                # The model may change in place what it gets, so an alias is kept.
                passing.outgoing = out[...]
            return out

        return call

    def _foreign_layer(self, before: bool, ghosts: list[int]) -> Callable[..., Any]:
        def call(_original: Callable[..., Any], *_args: Any, **_kwargs: Any) -> Any:
            passing = self._passing
            if passing.caches is None:
                raise LocalStageError("a layer was called outside a step")
            for index in ghosts:
                passing.caches.advance_ghost(index, passing.tokens)
            passed = passing.incoming if before else passing.outgoing
            if passed is None:
                raise LocalStageError("a layer was called before the hidden state was there")
            return passed[...]

        return call

    def _owned_parameters(self) -> list[list[mx.array]]:
        """Arrays to read, each once, in groups: one for each layer, one for what is outside the layers."""
        all_layers = list(self._model.layers)
        groups = [arrays_of(all_layers[index].parameters()) for index in self.layers]
        paths = set(self._anatomy.shared_modules)
        paths |= self._anatomy.head_modules if self.is_head else set()
        paths |= self._anatomy.tail_modules if self.is_tail else set()
        modules = modules_by_path(self._model)
        groups.append([array for path in sorted(paths) for array in own_parameters(modules[path]).values()])
        # One array may have two names, as a head that the loader makes of the embedding.
        seen: set[int] = set()
        once = []
        for group in groups:
            fresh = {id(array): array for array in group if id(array) not in seen}
            seen |= fresh.keys()
            once.append(list(fresh.values()))
        return [group for group in once if group]


def load_stage(
    model_path: Path,
    first_layer: int,
    end_layer: int,
    layer_count: int,
    progress: Progress = lambda _loaded, _total: None,
) -> StageModel:
    """Loads a range of layers, with the embedding at the head, and norm and output head at the tail.

    Raises:
        LocalModelFilesError: the folder is incomplete or damaged.
        LocalModelLoadError: mlx-lm cannot load the model, or it has another number of layers.
        LocalUnsplittableError: the architecture cannot be cut.
        LocalStageError: the range is none of this model.
    """
    check_model_files(model_path)
    try:
        model, _ = load_model(model_path, lazy=True)
    except Exception as error:
        raise LocalModelLoadError(f"mlx-lm cannot load {model_path}: {error}") from error
    anatomy = examine(model)
    if anatomy.layer_count != layer_count:
        raise LocalModelLoadError(
            f"{model_path} has {anatomy.layer_count} layers but the plan was made for {layer_count}; "
            "the nodes hold different models"
        )
    stage = StageModel(model, anatomy, first_layer, end_layer)
    try:
        stage.read_weights(progress)
    except RuntimeError as error:
        raise LocalModelLoadError(f"the weights in {model_path} cannot be read: {error}") from error
    return stage
