"""One stage of a model: its own layers of mlx-lm's own code, the rest passed through."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.utils import load_model

from macmesh_daemon.engine.adapters import adapter_of
from macmesh_daemon.engine.anatomy import (
    Anatomy,
    examine,
    modules_by_path,
    own_parameters,
    require_cut,
    swap_methods,
)
from macmesh_daemon.engine.caches import Caches, StageCaches, arrays_of, make_caches
from macmesh_daemon.engine.errors import LocalModelLoadError, LocalStageError
from macmesh_daemon.engine.files import check_model_files
from macmesh_daemon.engine.handover import ArrayFacts, arrays_in
from macmesh_daemon.engine.held import HeldWeights
from macmesh_daemon.engine.payload import Payload, payload_of
from macmesh_daemon.engine.tensor_sources import noted_loads, require_tensors
from macmesh_daemon.weights.partial import is_partial

Progress = Callable[[int, int], None]
"""Is told bytes loaded and bytes to load. The first call tells what was there before anything was read."""


@dataclasses.dataclass
class _Passing:
    """What crosses the stage in the step that runs."""

    caches: Caches | None = None
    rows: int = 0
    tokens: int = 0
    incoming: list[mx.array] = dataclasses.field(default_factory=list)
    """What the layer before this stage returned."""
    extras: list[mx.array] = dataclasses.field(default_factory=list)
    """What came beside it."""
    outgoing: list[mx.array] | None = None
    notes: list[Any] = dataclasses.field(default_factory=list)
    """What the layers behind this stage are called with, as far as they need it."""
    openings: list[mx.array] = dataclasses.field(default_factory=list)
    """See `StageModel.openings`."""


class StageModel:
    """Runs layers ``first_layer`` to ``end_layer - 1`` of a model; made by `load_stage`.

    The head takes token ids, the others what the stage before gives. The tail gives logits. To be used from
    the thread that loaded it.

    Args:
        model: whole and lazy; the layers of other stages lose their weights.
        anatomy: what `examine` says of it.
        first_layer: the first of this stage.
        end_layer: the first behind it.
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
        self.openings: list[mx.array] = []
        """What some layers put out in the decode step that was described last, in order.

        Queued one after the other before the step's output, they let the device begin while the host still encodes
        the layers behind them.
        """
        self._opening_layers = frozenset(opening_layers(self.layers))
        for cut in ([] if self.is_head else [first_layer]) + ([] if self.is_tail else [end_layer]):
            require_cut(anatomy, cut)
        self._extras = adapter_of(model).extras
        self._incoming: Payload | None = None if self.is_head else payload_of(model, anatomy, first_layer)
        self._passing = _Passing()
        self.layer_done: Callable[[int], None] = lambda _index: None
        """Is told each layer that has been run, in steps that run layer by layer."""
        self._cut()
        self._owned = self._owned_parameters()
        self.owned_bytes = sum(array.nbytes for group in self._owned for array in group)
        """Bytes of the weights that this stage needs."""
        self.kept_bytes = 0
        """Of these, what was held and not read."""
        self.kinds = self._kinds()
        """What decides which kernels its steps need: equal sets, equal kernels, for steps of equal sizes."""

    @property
    def architecture(self) -> str:
        """Name of the mlx-lm module that implements the model."""
        return self._anatomy.architecture

    @property
    def vocab_size(self) -> int:
        """Logits of one token."""
        return self._anatomy.vocab_size

    def payload_facts(self, rows: int, tokens: int) -> list[ArrayFacts] | None:
        """Shapes and dtypes of what comes in for a step of that size.

        None where they follow from more than that, as choices among all tokens so far do.
        """
        if self._incoming is None:
            return [ArrayFacts((rows, tokens), "int32")]
        return self._incoming.facts(rows, tokens)

    def owned_arrays(self) -> list[mx.array]:
        """The weights of this stage, each once."""
        return [array for group in self._owned for array in group]

    def read_weights(self, progress: Progress, held: HeldWeights | None = None) -> None:
        """Reads the weights of this stage, and no others, layer by layer.

        Args:
            progress: an exception that it raises ends the reading.
            held: of the same files. What this stage owns of it is taken over and not read; the rest is let go before
                anything is read. Holds whatever is read as soon as it is.
        """
        held = HeldWeights() if held is None else held
        kept = self._take_over(held)
        names = self._owned_names()
        loaded = self.kept_bytes
        progress(loaded, self.owned_bytes)
        for group in self._owned:
            missing = [array for array in group if id(array) not in kept]
            if not missing:
                continue
            mx.eval(missing)
            for array in missing:
                for name in names[id(array)]:
                    held.hold(name, array)
            loaded += sum(array.nbytes for array in missing)
            progress(loaded, self.owned_bytes)

    def let_go(self) -> None:
        """Gives up all weights; the stage cannot be used any more."""
        self._owned = []
        nothing = [(name, mx.zeros(0, array.dtype)) for name, array in _leaves(self._model)]
        self._model.update(tree_unflatten(nothing))

    def _take_over(self, held: HeldWeights) -> set[int]:
        """Puts held arrays in the place of the same ones unread, and lets all others go; the ids of these arrays."""
        found: dict[str, mx.array] = {}
        names = self._owned_names()
        for group in self._owned:
            for array in group:
                # One array may have several names, of which the stage before needed only one.
                known = held.find(names[id(array)], array)
                if known is not None:
                    found |= dict.fromkeys(names[id(array)], known)
        held.keep_only(frozenset(found))
        for name, array in found.items():
            held.hold(name, array)
        if found:
            self._model.update(tree_unflatten(list(found.items())))
            self._owned = self._owned_parameters()
        kept = {id(array): array for array in found.values()}
        self.kept_bytes = sum(array.nbytes for array in kept.values())
        return set(kept)

    def _owned_names(self) -> dict[int, list[str]]:
        """The names of every owned array, by its id."""
        names: dict[int, list[str]] = {id(array): [] for group in self._owned for array in group}
        for name, array in _leaves(self._model):
            if id(array) in names:
                names[id(array)].append(name)
        return names

    def _kinds(self) -> frozenset[str]:
        layers = list(self._model.layers)
        kinds = {
            " ".join(
                [type(layers[index]).__name__]
                + [f"{name}:{array.shape}:{array.dtype}" for name, array in _leaves(layers[index])]
            )
            for index in self.layers
        }
        return frozenset(
            kinds | ({"head"} if self.is_head else set()) | ({"tail"} if self.is_tail else set())
        )

    def make_caches(self, reserve_tokens: int, *, kv_bits: int = 0) -> StageCaches:
        """New caches for a request.

        Args:
            reserve_tokens: most tokens of it, prompt and output together.
            kv_bits: see `macmesh_daemon.engine.caches.make_caches`.

        Raises:
            LocalStageError: mlx-lm cannot quantise a cache of this model.
        """
        return make_caches(self._model, self._anatomy, self.layers, reserve_tokens, kv_bits=kv_bits)

    def step(self, inputs: list[mx.array], caches: Caches) -> list[mx.array]:
        """Describes one step; `evaluate` runs it. Of several tokens, the layers run here already.

        Args:
            inputs: at the head token ids alone, shape (rows, tokens); else what the stage before gave, all of
                it and in its order.
            caches: of the request, or of the batch whose requests are the rows; advanced.

        Returns:
            At the tail logits alone, shape (rows, tokens, vocabulary); else what the next stage takes: the
            hidden state, and what the architecture needs beside it. Not evaluated.

        Raises:
            LocalStageError: more tokens than the caches were reserved for, or not what this stage takes.
        """
        passing = self._taken_in(inputs)
        caches.advance(passing.tokens)
        passing.caches = caches
        tokens = inputs[0]
        if not self.is_head:
            # Never computed: the layers before this stage pass on what came in, not what they get.
            tokens = mx.zeros((passing.rows, passing.tokens), mx.int32)
        self._passing = passing
        try:
            logits: mx.array = self._model(tokens, cache=caches.entries)
        finally:
            self._passing = _Passing()
        self.openings = passing.openings
        if self.is_tail:
            return [logits]
        if passing.outgoing is None:
            raise LocalStageError(
                f"layer {self.layers[-1]} was not called; {self.architecture} cannot be cut"
            )
        return [*passing.outgoing, *self._extras.pack(self.layers.stop, passing.notes)]

    def evaluate(self, results: list[mx.array], caches: Caches) -> None:
        """Runs what was described: the results that are wanted, and the caches."""
        self.openings = []
        mx.eval([*results, *caches.owned_arrays()])

    def _taken_in(self, inputs: list[mx.array]) -> _Passing:
        expected = 1 if self._incoming is None else self._incoming.count
        if len(inputs) != expected:
            raise LocalStageError(f"{len(inputs)} arrays came in where this stage takes {expected}")
        shape = inputs[0].shape
        if self._incoming is None:
            return _Passing(rows=shape[0], tokens=shape[1])
        own = self._incoming.handed_on
        return _Passing(
            rows=shape[self._incoming.row_axis],
            tokens=shape[self._incoming.token_axis],
            incoming=inputs[:own],
            extras=inputs[own:],
        )

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
            foreign = self._earlier_layer if index < self.layers.start else self._later_layer
            swap_methods(layer, {"__call__": foreign(index, ghosts)})

    def _owned_layer(self, index: int) -> Callable[..., Any]:
        is_last = index == self.layers[-1]
        cache_indices = self._anatomy.layer_caches[index]

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            passing = self._passing
            args, kwargs = self._given(index, passing, args, kwargs)
            out = original(*args, **kwargs)
            outgoing = [] if self.is_tail or not is_last else self._anatomy.outlines[index].arrays(out)
            if passing.caches is not None and passing.tokens > 1:
                # A prefill step runs layer by layer: the host would else allocate for many layers before the
                # first is done, far beyond what the ledger charges. Nothing needs what the tail's last layer
                # puts out for a part of a prompt.
                passing.caches.copy_states(cache_indices)
                results = outgoing if is_last else list(arrays_in(out))
                mx.eval(results, passing.caches.arrays_at(cache_indices))
                self.layer_done(index)
            elif index in self._opening_layers:
                passing.openings.append(next(iter(arrays_in(out)))[...])
            if outgoing:
                # The model may change in place what it gets, so aliases are kept.
                passing.outgoing = [array[...] for array in outgoing]
            return out

        return call

    def _earlier_layer(self, _index: int, ghosts: list[int]) -> Callable[..., Any]:
        made = self._anatomy.outlines[self.layers.start - 1]

        def call(_original: Callable[..., Any], *_args: Any, **_kwargs: Any) -> Any:
            passing = self._passing
            self._advance(passing, ghosts)
            return made.filled(passing.incoming)

        return call

    def _later_layer(self, index: int, ghosts: list[int]) -> Callable[..., Any]:
        made = self._anatomy.outlines[self.layers.stop - 1]

        def call(_original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            passing = self._passing
            self._advance(passing, ghosts)
            if passing.outgoing is None:
                raise LocalStageError("a layer was called before the hidden state was there")
            passing.notes.append(self._extras.note(index, *self._given(index, passing, args, kwargs)))
            return made.filled(passing.outgoing)

        return call

    def _given(
        self, index: int, passing: _Passing, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a layer is called with."""
        if self.is_head or passing.caches is None:
            return args, kwargs
        return self._extras.give(index, self.layers.start, passing.extras, args, kwargs)

    @staticmethod
    def _advance(passing: _Passing, ghosts: list[int]) -> None:
        if passing.caches is None:
            raise LocalStageError("a layer was called outside a step")
        for index in ghosts:
            passing.caches.advance_ghost(index, passing.tokens)

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


def opening_layers(layers: range) -> list[int]:
    """After which layers of a stage the device is given what is encoded so far: the 1st, 2nd, 4th, 8th and so on.

    A GPU runs a layer for longer than the host takes to encode it, so the first pieces have to be short, and each may
    be as long as all before it.
    """
    found, count = [], 1
    while count < len(layers):
        found.append(layers[count - 1])
        count *= 2
    return found


def load_stage(
    model_path: Path,
    first_layer: int,
    end_layer: int,
    layer_count: int,
    progress: Progress = lambda _loaded, _total: None,
    held: HeldWeights | None = None,
) -> StageModel:
    """Loads a range of layers, with the embedding at the head, and norm and output head at the tail.

    Args:
        model_path: folder of the model.
        first_layer: the first of this stage.
        end_layer: the first behind it.
        layer_count: of the whole model, as the plan has it.
        progress: an exception that it raises ends the loading.
        held: what a stage before, which has let go, left to be taken over; see `StageModel.read_weights`. After an
            error it holds what was read so far.

    Raises:
        LocalModelFilesError: the folder is incomplete or damaged, or holds a part of its model that lacks some
            of what the stage reads.
        LocalModelLoadError: mlx-lm cannot load the model, or it has another number of layers.
        LocalUnsplittableError: the architecture cannot be cut.
        LocalStageError: the range is none of this model.
    """
    check_model_files(model_path)
    if held is not None:
        held.begin(model_path)
    try:
        with noted_loads() as loaded:
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
    if is_partial(model_path):
        require_tensors(model_path, loaded, stage.owned_arrays())
    # Tensors that were stacked or converted would else stay in memory beside what was made of them.
    loaded.clear()
    try:
        stage.read_weights(progress, held)
    except RuntimeError as error:
        raise LocalModelLoadError(f"the weights in {model_path} cannot be read: {error}") from error
    except BaseException:
        stage.let_go()
        raise
    return stage


def _leaves(module: Any) -> list[tuple[str, mx.array]]:
    """The parameters of a module and all below it, with their names."""
    flat = cast("list[tuple[str, Any]]", tree_flatten(module.parameters()))
    return [(name, leaf) for name, leaf in flat if isinstance(leaf, mx.array)]
