"""Writes ``docs/configuration.md`` from the documentation of the fields."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

from macmesh_daemon.config.fields import Config, FieldDoc
from macmesh_daemon.config.load import ENV_PREFIX

_HEAD = """\
# Configuration

A node needs no configuration. What can be set is read from four places; the first that has a value wins,
field by field:

1. a flag of `macmeshd`, such as `--listen-port 27450`; 2. a variable, such as `MACMESH_LISTEN_PORT=27450`;
3. the user's file: `~/Library/Application Support/macmesh/config.toml` (macOS),
`~/.config/macmesh/config.toml`
   (Linux), or the file that `--config` or `MACMESH_CONFIG` names;
4. the system's file: `/Library/Application Support/macmesh/config.toml` (macOS),
`/etc/xdg/macmesh/config.toml`
   (Linux).

Files are TOML with the names below at top level. A name that does not exist is an error, and so is a value
of the wrong type or out of range; the message names the file and the key. Sizes are bytes, or text with a
suffix: `"27GB"` (10⁹), `"25GiB"` (2³⁰). In variables and flags a list is written `a,b`, or as a TOML array
where an item holds a comma.

This page is made from the program: `python -m macmesh_daemon.config.reference docs/configuration.md`.
"""


def type_name(kind: Any) -> str:
    """Return how a field's type is called in the documentation."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"list of {type_name(typing.get_args(kind)[0])}s"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    return names[kind]


def default_text(item: dataclasses.Field[Any], doc: FieldDoc) -> str:
    """Return how a field's default is written in the documentation."""
    if doc.default_text:
        return doc.default_text
    value = item.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == ():
        return "`[]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def render() -> str:
    """Return the whole page."""
    hints = typing.get_type_hints(Config)
    parts = [_HEAD]
    for item in dataclasses.fields(Config):
        doc: FieldDoc = item.metadata["doc"]
        kind = type_name(hints[item.name]) + (f", {doc.unit}" if doc.unit else "")
        limits = [f"from {doc.minimum:g}"] if doc.minimum is not None else []
        limits += [f"to {doc.maximum:g}"] if doc.maximum is not None else []
        parts.append(
            f"\n## `{item.name}`\n\n{doc.meaning}\n\n"
            f"* type: {kind}{(' (' + ' '.join(limits) + ')') if limits else ''}\n"
            f"* default: {default_text(item, doc)}\n"
            f"* why: {doc.reason}\n"
            f"* variable: `{ENV_PREFIX}{item.name.upper()}`\n"
        )
    return "".join(parts)


if __name__ == "__main__":
    import sys

    Path(sys.argv[1]).write_text(render(), "utf-8")
