"""Checked access to JSON objects and numbers; every complaint names the field."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from macmesh_placement.errors import LocalPlacementError

#: Largest whole number that any field may hold: as bytes 72 PB, and far from where sums of a plan's terms
#: would leave 64 bits.
MOST = 2**56
#: Smallest and largest number above 0 that any field may hold: quotients and products of them stay finite.
LEAST_NUMBER, MOST_NUMBER = 1e-30, 1e30
#: Sums of quotients of such numbers stay far below.
_MOST_SECONDS = 1e300


class Reader:
    """Reads the fields of one JSON object and complains in one kind of error.

    Args:
        value: What should be an object.
        where: How messages name the object, such as ``"layers[3]"``.
        error: The error class to raise.
    """

    def __init__(self, value: object, where: str, error: type[LocalPlacementError]) -> None:
        self.where = where
        self.error = error
        if not isinstance(value, Mapping):
            raise error(f"{where} must be a JSON object, not {kind_of(value)}")
        self.fields: Mapping[str, Any] = value

    def only(self, names: Collection[str]) -> None:
        """Raises where the object has a field that is not in ``names``."""
        for name in self.fields:
            if name not in names:
                raise self.error(
                    f"{self.where} has the unknown field {name!r}; known: {', '.join(sorted(names))}"
                )

    def get(self, name: str) -> Any:
        """The field's value; raises where it is missing."""
        if name not in self.fields:
            raise self.error(f"{self.where} lacks the field {name!r}")
        return self.fields[name]

    def integer(self, name: str, *, default: int | None = None, minimum: int = 0) -> int:
        """A whole number of at least ``minimum``; missing takes ``default``, if that is given."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        require_integer(value, f"{self.where}.{name}", self.error, minimum=minimum)
        return int(value)

    def optional_integer(self, name: str, *, minimum: int = 0) -> int | None:
        """As `integer`, but missing and null give None."""
        return None if self.fields.get(name) is None else self.integer(name, minimum=minimum)

    def number(self, name: str, *, default: float | None = None) -> float:
        """A finite number of at least 0."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        require_number(value, f"{self.where}.{name}", self.error)
        return float(value)

    def seconds(self, name: str, *, default: float | None = None) -> float:
        """A finite number of at least 0, however small: a quotient of two numbers that were checked."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_SECONDS:
            raise self.error(f"{self.where}.{name} must be from 0 to {_MOST_SECONDS:g}, not {kind_of(value)}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """As `number`, but missing and null give None."""
        return None if self.fields.get(name) is None else self.number(name)

    def text(self, name: str, *, default: str | None = None) -> str:
        """A string."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        if not isinstance(value, str):
            raise self.error(f"{self.where}.{name} must be a string, not {kind_of(value)}")
        return value

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        """True or false."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        if not isinstance(value, bool):
            raise self.error(f"{self.where}.{name} must be true or false, not {kind_of(value)}")
        return value

    def array(self, name: str, *, default: list[Any] | None = None) -> list[Any]:
        """An array."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        if not isinstance(value, list):
            raise self.error(f"{self.where}.{name} must be an array, not {kind_of(value)}")
        return value

    def texts(self, name: str, *, default: list[Any] | None = None) -> tuple[str, ...]:
        """An array of strings."""
        values = self.array(name, default=default)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{self.where}.{name}[{index}] must be a string, not {kind_of(value)}")
        return tuple(values)

    def objects(self, name: str, *, default: list[Any] | None = None) -> list["Reader"]:
        """An array of objects, each to be read."""
        return [
            Reader(value, f"{self.where}.{name}[{index}]", self.error)
            for index, value in enumerate(self.array(name, default=default))
        ]


def kind_of(value: object) -> str:
    """How messages show a value: short, and never a page of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a very deep structure
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004  the line above says it


def parse(text: str, what: str, error: type[LocalPlacementError]) -> Any:
    """The parsed JSON text; NaN and infinities are refused.

    Raises:
        LocalPlacementError: As ``error``, where the text is not JSON.
    """

    def refuse(constant: str) -> float:
        raise error(f"{what} holds {constant}, which is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except LocalPlacementError:
        raise
    except (ValueError, RecursionError) as problem:  # ValueError: also integers of thousands of digits
        raise error(f"{what} is not JSON: {problem}") from problem


def require_integer(value: object, name: str, error: type[LocalPlacementError], *, minimum: int = 0) -> None:
    """Raises ``error`` unless ``value`` is a whole number from ``minimum`` to `MOST`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{name} must be a whole number, not {kind_of(value)}")
    if value < minimum:
        raise error(f"{name} must be at least {minimum}, not {kind_of(value)}")
    if value > MOST:
        raise error(f"{name} must be at most 2^56, not {kind_of(value)}")


def require_number(value: object, name: str, error: type[LocalPlacementError]) -> None:
    """Raises ``error`` unless ``value`` is 0 or a number from `LEAST_NUMBER` to `MOST_NUMBER`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise error(f"{name} must be a number, not {kind_of(value)}")
    if not (value == 0 or LEAST_NUMBER <= value <= MOST_NUMBER):  # NaN and infinities fail here too
        raise error(
            f"{name} must be 0 or a finite number from {LEAST_NUMBER:g} to {MOST_NUMBER:g}, "
            f"not {kind_of(value)}"
        )


def require_text(value: object, name: str, error: type[LocalPlacementError]) -> None:
    """Raises ``error`` unless ``value`` is a string."""
    if not isinstance(value, str):
        raise error(f"{name} must be a string, not {kind_of(value)}")


def require_flag(value: object, name: str, error: type[LocalPlacementError]) -> None:
    """Raises ``error`` unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise error(f"{name} must be true or false, not {kind_of(value)}")
