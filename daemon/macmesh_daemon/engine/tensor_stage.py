"""One rank's part of every layer, for tensor parallelism: mlx-lm's own code after the model's own ``shard()``.

Every rank has all layers, the embedding, the norm and the output head, so each is head and tail at once. What
``shard()`` splits, it splits for a group of which only rank and size are known: the ranks meet when all have loaded.
Until then the model's collectives keep shapes and pass nothing on, which is enough to compile kernels; `join` puts the
real group in their place.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_map
from mlx_lm.utils import load_model

from macmesh_daemon.engine.anatomy import Anatomy, examine, modules_by_path
from macmesh_daemon.engine.caches import Caches
from macmesh_daemon.engine.errors import LocalModelLoadError, LocalStageError, LocalUnsplittableError
from macmesh_daemon.engine.files import check_model_files
from macmesh_daemon.engine.held import HeldWeights
from macmesh_daemon.engine.profile_shards import PretendedGroup, pretended_communication
from macmesh_daemon.engine.stage import Progress, StageModel


class TensorStage(StageModel):
    """All layers of a model, of each this rank's part; made by `load_tensor_stage`.

    Args:
        model: after its ``shard()``.
        anatomy: of the whole model.
    """

    def __init__(self, model: Module, anatomy: Anatomy) -> None:
        super().__init__(model, anatomy, 0, anatomy.layer_count)
        self._joined = False

    def join(self, group: "mx.distributed.Group") -> None:
        """Lets the ranks' sums go over a group from now on.

        Raises:
            LocalStageError: it is not the group that the model was split for, or it has been joined before.
        """
        if self._joined:
            raise LocalStageError("the stage has joined a group already")
        places = list(_places(self._model))
        for pretended in {place[2] for place in places}:
            if (pretended.size(), pretended.rank()) != (group.size(), group.rank()):
                raise LocalStageError(
                    f"the model was split for rank {pretended.rank()} of {pretended.size()}, not for rank "
                    f"{group.rank()} of {group.size()}"
                )
        for module, name, _ in places:
            setattr(module, name, group)
        self._joined = True

    def step(self, inputs: list[mx.array], caches: Caches) -> list[mx.array]:
        """See `StageModel.step`. Before `join` its results mean nothing."""
        if self._joined:
            return super().step(inputs, caches)
        with pretended_communication():
            return super().step(inputs, caches)

    def read_weights(self, progress: Progress, held: HeldWeights | None = None) -> None:  # noqa: ARG002  nothing is kept
        """Reads this rank's part of the weights, and holds little else at a time.

        Of each array all is read, the part is copied, and the rest is freed before the next one is read. Nothing that
        is held is of use to a part of every layer.
        """
        loaded = 0
        progress(loaded, self.owned_bytes)
        for group in self._owned:
            for array in group:
                mx.eval(array)
                loaded += array.nbytes
            # What was read of the others is in MLX's cache of free buffers.
            mx.clear_cache()
            progress(loaded, self.owned_bytes)


def load_tensor_stage(
    model_path: Path,
    rank: int,
    ways: int,
    layer_count: int,
    progress: Progress = lambda _loaded, _total: None,
) -> TensorStage:
    """Loads one rank's part of every layer. The most that it holds on the way is its part and one whole layer.

    Args:
        model_path: folder of the model.
        rank: this one.
        ways: ranks over which every layer is split.
        layer_count: of the plan.
        progress: told after every layer.

    Raises:
        LocalModelFilesError: the folder is incomplete or damaged.
        LocalModelLoadError: mlx-lm cannot load the model, or it has another number of layers.
        LocalUnsplittableError: the architecture cannot be split so.
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
    shard: Callable[..., None] | None = getattr(model, "shard", None)
    if shard is None:
        raise LocalUnsplittableError(
            f"mlx-lm cannot split the layers of {anatomy.architecture}; load it without tensor parallelism"
        )
    try:
        shard(PretendedGroup(ways, rank))
    except Exception as error:
        # One that cannot divide fails in many ways: an assertion, a shape, a division by zero.
        raise LocalUnsplittableError(
            f"mlx-lm cannot split the layers of {anatomy.architecture} over {ways} nodes: {error!r}"
        ) from error
    _hold_parts_alone(model)
    stage = TensorStage(model, anatomy)
    try:
        stage.read_weights(progress)
    except RuntimeError as error:
        raise LocalModelLoadError(f"the weights in {model_path} cannot be read: {error}") from error
    return stage


def _hold_parts_alone(model: Module) -> None:
    """Describes copies of what ``shard()`` cut out as slices, which else keep the whole array's memory alive."""
    made: dict[int, mx.array] = {}
    kept: list[mx.array] = []

    def copied(array: mx.array) -> mx.array:
        if id(array) not in made:
            # Of an array that has its memory for itself this is no copy.
            made[id(array)] = mx.contiguous(array)
            kept.append(array)
        return made[id(array)]

    untyped: Any = model
    untyped.update(tree_map(copied, untyped.parameters()))


def _places(model: Any) -> Iterator[tuple[Module, str, PretendedGroup]]:
    """Where the model keeps the group that it was split for."""
    for module in modules_by_path(model).values():
        for name, value in vars(module).items():
            if isinstance(value, PretendedGroup):
                yield module, name, value
