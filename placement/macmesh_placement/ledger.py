"""The ledger: the byte-exact table of what one stage needs.

Every stage's ledger has the same lines, in this order; a line that charges nothing is left out.

=====================  ======================================================================================
``weights``            parameters of the stage's layers, and those outside the layers that every stage holds
``embedding``          first stage: the embedding
``head``               last stage: final norm and head, or its own copy of the tied embedding
``cache``              slots x the cache of one request at full context, as allocated (rounded up to the
                       allocation step)
``cache_prefill``      slots x what windowed caches hold beyond that while prompts are taken
``prefill_scratch``    what one prefill step keeps alive in the layer that needs most, by the graph of the step,
                       and the hidden states that come and go: with several stages also those that cross
                       meanwhile
``attention_scratch``  scores of one prefill step, where the backend materialises what others fuse
``sampling``           last stage: logits of every slot, of 8 at least, and the copies that sampling makes of them
``transport_pool``     send and receive buffers, where there is more than one stage
``allocator_slack``    a page for each array, and the freed buffers that the allocator may keep
``runtime_reserve``    the process itself: interpreter, libraries, GPU runtime
=====================  ======================================================================================
"""

from dataclasses import dataclass
from typing import Any

from macmesh_placement.checks import Reader, require_integer, require_number
from macmesh_placement.errors import LocalPlacementError, LocalPlanRequestError
from macmesh_placement.profile import ModelProfile

#: MLX's Metal allocator rounds a buffer up to a page of 16 KiB.
PAGE_BYTES = 16 * 1024
#: Hidden states of a prefill step beside those of the layer that runs: the stage's input and its output.
HIDDEN_STATES = 2
#: The same where there are several stages: the step before is still sent, and the next one is taken in already.
PIPED_HIDDEN_STATES = 4
#: Float32 arrays of the vocabulary's size that sampling holds at once: logits, log-probabilities, their
#: sorted order (values and indices), the cumulated sum and the masked result.
SAMPLING_COPIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserves:
    """The terms of the ledger that no profile knows.

    Attributes:
        runtime_reserve_bytes: The worker process without weights and caches. Default 512 MiB: interpreter,
            mlx-lm and the GPU runtime. Tiny models on a CPU need less; the reserve may be lowered, never
            guessed away.
        buffer_cache_bytes: Freed buffers that the worker lets its allocator keep (``mx.set_cache_limit``).
            Default 128 MiB.
        transport_pool_bytes: Transport buffers of a stage that has neighbours. Default: 8 buffers of each of
            6 sizes from 64 KiB for 2 peers, 8 x 64 KiB x (2^6 - 1) x 2 = 66,060,288.
        sampled_rows: Requests whose next tokens are chosen at once, at least; where there are more slots, so many.
            Default 8, the most rows of a batch.
        host_reserve_fraction: Share of a machine's RAM that its nodes together leave to the system. Default
            0.1.
    """

    runtime_reserve_bytes: int = 512 * 1024 * 1024
    buffer_cache_bytes: int = 128 * 1024 * 1024
    transport_pool_bytes: int = 8 * 65536 * (2**6 - 1) * 2
    sampled_rows: int = 8
    host_reserve_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("runtime_reserve_bytes", "buffer_cache_bytes", "transport_pool_bytes"):
            require_integer(getattr(self, name), f"reserves {name}", LocalPlanRequestError)
        require_integer(self.sampled_rows, "reserves sampled_rows", LocalPlanRequestError)
        require_number(self.host_reserve_fraction, "reserves host_reserve_fraction", LocalPlanRequestError)
        if self.host_reserve_fraction >= 1:
            raise LocalPlanRequestError("reserves host_reserve_fraction must be below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line: a stable name, the bytes charged, and how the figure was made."""

    name: str
    size_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What one stage needs against what its node may use; anyone can re-add it."""

    entries: tuple[LedgerEntry, ...]
    usable_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum of the entries."""
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def headroom_bytes(self) -> int:
        """What is left; negative where the stage does not fit."""
        return self.usable_bytes - self.total_bytes

    def size_of(self, name: str) -> int:
        """Bytes of the entry of that name; 0 where there is none."""
        return sum(entry.size_bytes for entry in self.entries if entry.name == name)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters of the stage."""
        return self.size_of("weights") + self.size_of("embedding") + self.size_of("head")

    @property
    def cache_bytes(self) -> int:
        """Bytes of cache at full context."""
        return self.size_of("cache")

    def to_json(self) -> dict[str, Any]:
        """The ledger as a JSON object."""
        return {
            "entries": [
                {"name": entry.name, "size_bytes": entry.size_bytes, "source": entry.source}
                for entry in self.entries
            ],
            "total_bytes": self.total_bytes,
            "usable_bytes": self.usable_bytes,
            "headroom_bytes": self.headroom_bytes,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "Ledger":
        """Reads `to_json`'s form and re-adds it.

        Raises:
            LocalPlacementError: It is not a ledger, or its sums are wrong.
        """
        reader = Reader(value, where, LocalPlacementError)
        entries = []
        for index, item in enumerate(reader.array("entries")):
            line = Reader(item, f"{where}.entries[{index}]", LocalPlacementError)
            entries.append(
                LedgerEntry(
                    name=line.text("name"), size_bytes=line.integer("size_bytes"), source=line.text("source")
                )
            )
        ledger = cls(entries=tuple(entries), usable_bytes=reader.integer("usable_bytes"))
        for name in ("total_bytes", "headroom_bytes"):
            if reader.get(name) != getattr(ledger, name):
                raise LocalPlacementError(
                    f"{where}.{name} says {reader.get(name)}, but its entries give {getattr(ledger, name)}"
                )
        return ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDemand:
    """How a stage will be used: the arguments of a ledger that are the same for every stage of a plan.

    Attributes:
        context_tokens: Tokens of context that the cache of one slot holds.
        slots: Requests served at once. A slot is the cache budget of one whole context, so ``slots`` requests
            of full length fit at once, or more that are shorter.
        prefill_chunk_tokens: Most prompt tokens of one prefill step.
        reserves: The terms that no profile knows.
    """

    context_tokens: int
    slots: int
    prefill_chunk_tokens: int
    reserves: Reserves

    @property
    def sampled_rows(self) -> int:
        """Rows of logits that sampling holds at once."""
        return max(self.slots, self.reserves.sampled_rows)


def stage_ledger(
    profile: ModelProfile,
    demand: StageDemand,
    *,
    first_layer: int,
    end_layer: int,
    usable_bytes: int,
    fused_attention: bool,
) -> Ledger:
    """The ledger of the stage that holds layers ``first_layer`` up to, without, ``end_layer``.

    Raises:
        LocalPlanRequestError: The range is empty or not within the model.
    """
    if not 0 <= first_layer < end_layer <= profile.layer_count:
        raise LocalPlanRequestError(
            f"layers {first_layer}..{end_layer} are not a range of the model's {profile.layer_count} layers"
        )
    entries = [
        LedgerEntry(name=name, size_bytes=size_bytes, source=source)
        for name, size_bytes, source in _lines(
            profile, demand, first_layer, end_layer, fused_attention=fused_attention
        )
        if size_bytes
    ]
    return Ledger(entries=tuple(entries), usable_bytes=usable_bytes)


def _lines(
    profile: ModelProfile, demand: StageDemand, first: int, end: int, *, fused_attention: bool
) -> list[tuple[str, int, str]]:
    layers = profile.layers[first:end]
    is_head, is_tail = first == 0, end == profile.layer_count
    context, slots = demand.context_tokens, demand.slots
    chunk = min(demand.prefill_chunk_tokens, context)
    reserves = demand.reserves
    pieces = [piece for layer in layers for piece in layer.caches] + list(
        profile.head_caches if is_head else ()
    )
    arrays = sum(layer.parameter_count for layer in layers) + profile.outer_parameter_count
    arrays += slots * sum(piece.array_count for piece in pieces)
    hidden = chunk * profile.handover_row_bytes
    hidden_states = HIDDEN_STATES if is_head and is_tail else PIPED_HIDDEN_STATES
    scratch = max(layer.prefill_scratch_bytes(context, chunk) for layer in layers)
    scores = max(
        (
            layer.attention.scratch_bytes(context, chunk, fused_kernel=fused_attention)
            for layer in layers
            if layer.attention is not None
        ),
        default=0,
    )
    one_copy = is_head and is_tail and profile.tied
    tail_bytes = profile.norm_bytes if one_copy else profile.tail_bytes
    return [
        (
            "weights",
            sum(layer.weight_bytes for layer in layers) + profile.shared_bytes,
            f"parameters of layers {first} to {end - 1}, from {profile.weights_source}",
        ),
        ("embedding", profile.embedding_bytes if is_head else 0, "first stage"),
        ("head", tail_bytes if is_tail else 0, _head_source(profile, one_copy=one_copy)),
        (
            "cache",
            slots * sum(piece.reserved_bytes(context) for piece in pieces),
            f"{slots} x {context} tokens, as allocated",
        ),
        (
            "cache_prefill",
            slots * sum(piece.lasting_prefill_bytes(context, chunk) for piece in pieces),
            f"{slots} x windows between prefill steps of {chunk} tokens",
        ),
        (
            "prefill_scratch",
            scratch + hidden_states * hidden,
            f"a step of {chunk} tokens in its largest layer, and {hidden_states} hidden states",
        ),
        ("attention_scratch", scores, f"scores of {chunk} x {context} where no kernel is fused"),
        (
            "sampling",
            demand.sampled_rows * profile.vocab_size * 4 * SAMPLING_COPIES if is_tail else 0,
            f"{demand.sampled_rows} x {profile.vocab_size} logits x {SAMPLING_COPIES} float32 copies",
        ),
        (
            "transport_pool",
            0 if is_head and is_tail else reserves.transport_pool_bytes,
            "send and receive buffers",
        ),
        (
            "allocator_slack",
            arrays * PAGE_BYTES + reserves.buffer_cache_bytes,
            f"{arrays} arrays x {PAGE_BYTES} + buffer cache limit",
        ),
        ("runtime_reserve", reserves.runtime_reserve_bytes, "worker process"),
    ]


def _head_source(profile: ModelProfile, *, one_copy: bool) -> str:
    if one_copy:
        return "last stage: final norm; the head is the embedding above"
    return (
        "last stage: final norm and a copy of the tied embedding"
        if profile.tied
        else "last stage: final norm and head"
    )
