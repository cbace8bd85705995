"""What a command writes: data on stdout, talk on stderr, colours only for people."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def json_format(form: str) -> str:
    """The value of ``format`` in a command's JSON."""
    return f"daemonctl-{form}/1"


def print_json(args: argparse.Namespace, value: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print the command's JSON object; its ``format`` goes first."""
    body = {"format": json_format(args.form), **{k: v for k, v in value.items() if k != "format"}}
    print_data(json.dumps(body, indent=indent, ensure_ascii=False))


def print_data(text: str, *, end: str = "\n") -> None:
    """Write data to stdout, at once.

    Raises:
        BrokenPipeError: The reader has gone.
    """
    sys.stdout.write(text + end)
    sys.stdout.flush()


#: What a stream that knows ASCII only gets for the signs that tables, bars and lines use.
_ASCII: Final = str.maketrans({"█": "#", "▓": "=", "▒": "+", "░": ":", "·": ".", "▚": "!", "…": "~"})


def encodable(text: str, encoding: str | None) -> str:
    """The text as a stream of that encoding can write it: signs have ASCII stand-ins, the rest becomes ``?``."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def talk(text: str, *, end: str = "\n") -> None:
    """Tell the person; does nothing where nobody can listen."""
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except BrokenPipeError:
        pass


def wants_color(args: argparse.Namespace, stream: TextIO) -> bool:
    """Whether colours are right on a stream."""
    return (
        not args.no_color
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
        and stream.isatty()
    )


def terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal behind a stream; None where it is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def printable(text: str) -> str:
    """Text of other machines without control characters, which could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
