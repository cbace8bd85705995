"""What became of the tokens of a stream that was disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class TokenVerdict:
    """The disturbed stream beside the undisturbed one.

    Attributes:
        expected: Tokens of the undisturbed stream.
        received: Tokens of the disturbed one.
        lost: Tokens that did not come: a gap, or the rest of a stream that ended early.
        doubled: Tokens that came twice.
        differing: Tokens from the first difference on that is neither a gap nor a repetition.
    """

    expected: int
    received: int
    lost: int
    doubled: int
    differing: int

    @property
    def is_whole(self) -> bool:
        """Whether every token came once and as it should."""
        return self.lost == self.doubled == self.differing == 0


def compare(expected: Sequence[int], received: Sequence[int]) -> TokenVerdict:
    """Judge a stream: where it departs, the smallest gap or repetition that explains all the rest.

    Where nothing does, the tokens from there on differ.
    """
    same = next(
        (i for i, (a, b) in enumerate(zip(expected, received, strict=False)) if a != b),
        min(len(expected), len(received)),
    )
    rest = list(received[same:])

    def verdict(lost: int = 0, doubled: int = 0, differing: int = 0) -> TokenVerdict:
        return TokenVerdict(len(expected), len(received), lost, doubled, differing)

    if not rest:
        return verdict(lost=len(expected) - same)
    longest = max(same, len(expected) - same)
    for shift in range(1, longest + 1):
        if shift <= same:
            again = list(expected[same - shift :])
            if rest[: len(again)] == again[: len(rest)] and len(rest) <= len(again):
                return verdict(lost=len(again) - len(rest), doubled=shift)
        after = list(expected[same + shift :])
        if after and rest[: len(after)] == after[: len(rest)] and len(rest) <= len(after):
            return verdict(lost=shift + len(after) - len(rest))
    return verdict(lost=max(0, len(expected) - len(received)), differing=len(rest))
