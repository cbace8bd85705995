"""The CLI's reference page, made from the parsers: ``python -m macmesh_daemon.cli.reference > docs/cli.md``."""

from __future__ import annotations

import argparse
import re
import sys

from macmesh_daemon.cli.daemonctl import build_parser

_HEAD = """# daemonctl

Sees and changes a macmesh cluster. stdout carries data, stderr carries talk, so output can be piped.
This page is made from the parsers (`python -m macmesh_daemon.cli.reference > docs/cli.md`); a test compares.

| exit code | meaning |
|---|---|
| 0 | ok; also when the reader of stdout went away |
| 1 | failed, or the answer is no: a refused plan, tokens that differ |
| 2 | the command line or a file named on it is wrong |
| 3 | the daemon is not running |
| 4 | degraded: a node of the plan or the quorum is missing |
| 75 | try again: the same command may succeed later |
| 130 | ended by Ctrl-C |

`--json` prints one object whose first key is `"format": "daemonctl-<command>/1"`; the number rises when a key
changes its meaning or goes, not when one is added. `watch` prints one such object per line. A failure prints the
same object with `"error": {"code", "reason", "message", "metadata"}`; the reasons are in `macmesh.reasons`.

The daemon is found at the first of: `--socket`, `MACMESH_SOCKET`, `MACMESH_SOCKET_PATH`, the socket in
`MACMESH_DATA_DIR`, the one a configuration file names, `macmeshd.sock` in the user's data folder
(`~/Library/Application Support/macmesh` on macOS, `~/.local/share/macmesh` on Linux; `/tmp/macmesh-<uid>/` where
that path would pass 100 bytes).
"""


def reference() -> str:
    """The page."""
    parts = [_HEAD]
    for words, parser in _leaves("daemonctl", build_parser(everything=True)):
        parts.append(_section(words, parser))
    return "\n".join(parts)


def _leaves(words: str, parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """Every parser that runs something, with the words that lead to it."""
    children = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001  no public way
    if not children:
        return [(words, parser)]
    return [leaf for name, child in children[0].choices.items() for leaf in _leaves(f"{words} {name}", child)]


def _section(words: str, parser: argparse.ArgumentParser) -> str:
    summary, _, examples = (parser.description or "").partition("\n\nexamples:\n")
    shell = "\n".join(_commented(line.strip()) for line in examples.splitlines())
    rows = [
        f"| `{_name(action)}` | {_help(action, parser)} |"
        for action in parser._actions  # noqa: SLF001  no public way
        if not isinstance(action, argparse._HelpAction)  # noqa: SLF001  as above
    ]
    table = "\n".join(["| argument | meaning |", "|---|---|", *rows])
    return f"## {words}\n\n{summary}\n\n```sh\n{shell}\n```\n\n{table}\n"


def _commented(example: str) -> str:
    """An example as the help has it, ``command    what it does``, with a ``#`` that a shell understands."""
    return re.sub(r"(\s{2,})(?=\S)", r"\1# ", example, count=1)


def _name(action: argparse.Action) -> str:
    value = str(action.metavar or (",".join(map(str, action.choices)) if action.choices else ""))
    if not action.option_strings:
        return value
    option = ", ".join(action.option_strings)
    return option if action.nargs == 0 else f"{option} {value}"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
