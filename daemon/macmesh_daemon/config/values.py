"""Turning what a file, a variable or a flag says into the type of a field."""

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_FACTORS: dict[str, int] = {
    "": 1,
    **{letter: 1000 ** (power + 1) for power, letter in enumerate("KMGT")},
    **{f"{letter}I": 1024 ** (power + 1) for power, letter in enumerate("KMGT")},
}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class UnfitValueError(ValueError):
    """A value cannot become the field's type; the text says what was expected."""


def parse_size(text: str) -> int:
    """Read ``27GB``, ``96 GiB`` or plain bytes as a whole number of bytes.

    Raises:
        UnfitValueError: It is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UnfitValueError(f"expected bytes, such as 27000000000, 27GB or 25GiB, not {text!r}")
    number, suffix = match.group(1), (match.group(2) or "").upper()
    if not suffix and "." in number:
        raise UnfitValueError(f"expected a whole number of bytes, not {text!r}")
    return round(float(number) * _FACTORS[suffix]) if "." in number else int(number) * _FACTORS[suffix]


def convert(value: Any, kind: Any, *, unit: str, textual: bool) -> Any:
    """Return ``value`` as an instance of the field type ``kind``.

    Args:
        value: From TOML, the environment or the command line.
        kind: The annotation of the field.
        unit: The field's unit; ``bytes`` allows suffixes.
        textual: ``value`` comes from the environment or the command line, where everything is text.

    Raises:
        UnfitValueError: It cannot be one.
    """
    if isinstance(kind, UnionType):  # `X | None`: leaving it out is the only way to say None
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return _convert_choice(value, get_args(kind))
    if get_origin(kind) is tuple:
        return _convert_list(value, get_args(kind)[0], unit=unit, textual=textual)
    if kind is int and unit == "bytes" and isinstance(value, str):
        return parse_size(value)
    converter: Callable[[Any, bool], Any] = _CONVERTERS[kind]
    return converter(value, textual)


def _convert_choice(value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UnfitValueError(f"expected one of {', '.join(choices)}, not {value!r}")
    return str(value)


def _convert_list(value: Any, item_kind: Any, *, unit: str, textual: bool) -> tuple[Any, ...]:
    items = value
    if textual and isinstance(value, str):
        items = _split(value)
    if not isinstance(items, (list, tuple)):
        raise UnfitValueError(f"expected a list, not {value!r}")
    return tuple(convert(item, item_kind, unit=unit, textual=textual) for item in items)


def _split(text: str) -> list[Any]:
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise UnfitValueError(f"expected a,b or a TOML array, not {text!r}") from error
    return list(value)


def _to_bool(value: Any, textual: bool) -> bool:
    if isinstance(value, bool):
        return value
    if textual and isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise UnfitValueError(f"expected true or false, not {value!r}")


def _to_int(value: Any, textual: bool) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if textual and isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
        return int(value)
    raise UnfitValueError(f"expected a whole number, not {value!r}")


def _to_float(value: Any, textual: bool) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif textual and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not math.isfinite(number):
        raise UnfitValueError(f"expected a number, not {value!r}")
    return number


def _to_str(value: Any, _textual: bool) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UnfitValueError(f"expected text, not {value!r}")
    return value.strip()


def _to_path(value: Any, _textual: bool) -> Path:
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise UnfitValueError(f"expected a path, not {value!r}")
    return Path(value).expanduser().absolute()


_CONVERTERS: dict[Any, Callable[[Any, bool], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    Path: _to_path,
}
