"""The text that the demo model learns: questions and answers in the words of the documentation.

It ships as package data, so the model can be made again from an installed package.
"""

from dataclasses import dataclass
from importlib import resources

_CORPUS = "demo_corpus.txt"
_MARK = "? "


@dataclass(frozen=True, slots=True)
class Passage:
    """One thing that the model can be asked about: a question and the text that answers it."""

    question: str
    answer: str


def read_corpus() -> list[Passage]:
    """The passages that ship with the package."""
    return parse_corpus((resources.files(__package__) / _CORPUS).read_text(encoding="utf-8"))


def parse_corpus(text: str) -> list[Passage]:
    """The passages of a text: blocks separated by an empty line, each a `? question` line and its answer.

    Raises:
        ValueError: A block has another form.
    """
    passages = []
    for block in text.strip().split("\n\n"):
        head, _, answer = block.partition("\n")
        if not head.startswith(_MARK) or not answer:
            raise ValueError(f"a passage must be a '? question' line and its answer, got {block[:60]!r}")
        passages.append(Passage(head.removeprefix(_MARK), answer))
    return passages
