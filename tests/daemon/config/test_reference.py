from pathlib import Path

from macmesh_daemon.config import field_docs
from macmesh_daemon.config.reference import render

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_in_the_docs_is_what_the_program_says() -> None:
    assert PAGE.read_text("utf-8") == render(), (
        "run: python -m macmesh_daemon.config.reference docs/configuration.md"
    )


def test_every_field_says_what_it_is_and_why() -> None:
    for name, doc in field_docs().items():
        assert doc.meaning.endswith("."), name
        assert doc.reason, name
        for ending, unit in (("_bytes", "bytes"), ("_seconds", "seconds"), ("_tokens", "tokens")):
            if name.endswith(ending):
                assert doc.unit == unit, name
