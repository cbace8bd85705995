"""What a node must not forget."""

from dataclasses import dataclass
from functools import cached_property

from .messages import Ballot, ClusterDocument, Epoch, Plan, Version


@dataclass(frozen=True)  # no slots: it remembers what is asked at every step
class PersistentState:
    """The durable part of a node; mirrors ``PersistentState`` of ``proto/macmesh/v1/state.proto``.

    Invariants: (generation, term), ``promised``, ``active``, the document's version and the commit version
    never fall; ``voted_for`` changes only from "" within one (generation, term); active <= promised.
    Plans that the node makes for itself only leave all of these alone: only ``local_seq`` counts them.
    """

    generation: int = 0
    term: int = 0
    voted_for: str = ""
    document: ClusterDocument | None = None
    commit_generation: int = 0
    commit_term: int = 0
    commit_seq: int = 0
    promised: Epoch | None = None
    promised_plan: Plan | None = None
    active: Epoch | None = None
    active_plan: Plan | None = None
    local_seq: int = 0

    @cached_property
    def ballot(self) -> Ballot:
        """(generation, term)."""
        return (self.generation, self.term)

    @cached_property
    def document_version(self) -> Version:
        """Version of the stored document; (0, 0, 0) where there is none."""
        return self.document.version if self.document else (0, 0, 0)

    @cached_property
    def commit_version(self) -> Version:
        """The newest version known to be committed; (0, 0, 0) where none is."""
        return (self.commit_generation, self.commit_term, self.commit_seq)
