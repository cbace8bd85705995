"""Checked access to JSON objects and numbers; every complaint names the field."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from macmesh_placement.errors import LocalPlacementError


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
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{self.where}.{name} must be a whole number, not {kind_of(value)}")
        if value < minimum:
            raise self.error(f"{self.where}.{name} must be at least {minimum}, not {value}")
        return value

    def optional_integer(self, name: str, *, minimum: int = 0) -> int | None:
        """As `integer`, but missing and null give None."""
        return None if self.fields.get(name) is None else self.integer(name, minimum=minimum)

    def number(self, name: str, *, default: float | None = None) -> float:
        """A finite number of at least 0."""
        value = self.fields.get(name, default) if default is not None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{self.where}.{name} must be a number, not {kind_of(value)}")
        if not math.isfinite(value) or value < 0:
            raise self.error(f"{self.where}.{name} must be finite and at least 0, not {value}")
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


def kind_of(value: object) -> str:
    """How messages show a value: short, and never a page of it."""
    text = repr(value)
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
    except (json.JSONDecodeError, RecursionError) as problem:
        raise error(f"{what} is not JSON: {problem}") from problem


def require_integer(value: object, name: str, error: type[LocalPlacementError], *, minimum: int = 0) -> None:
    """Raises ``error`` unless ``value`` is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{name} must be a whole number, not {kind_of(value)}")
    if value < minimum:
        raise error(f"{name} must be at least {minimum}, not {value}")


def require_number(value: object, name: str, error: type[LocalPlacementError]) -> None:
    """Raises ``error`` unless ``value`` is finite and at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise error(f"{name} must be a number, not {kind_of(value)}")
    if not math.isfinite(value) or value < 0:
        raise error(f"{name} must be finite and at least 0, not {value}")
