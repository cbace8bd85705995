"""A faster `__init__` for the values of which every heartbeat makes a few."""

import dataclasses
from typing import Any, TypeVar

from .errors import LocalClusterMisuse

_Value = TypeVar("_Value")


def quickly_made(value: type[_Value]) -> type[_Value]:
    """Replace the `__init__` of a frozen dataclass with slots by one of the same signature, in half the time.

    The one that `dataclasses` writes looks every field up by its name, in `object.__setattr__`; this one fills
    the slots themselves. Nothing else changes: the value is as frozen as before.

    Raises:
        LocalClusterMisuse: The class has no slots, or fields that this does not know how to fill.
    """
    fields = dataclasses.fields(value)  # type: ignore[arg-type]
    if hasattr(value, "__post_init__") or "__slots__" not in vars(value):
        raise LocalClusterMisuse(f"{value.__name__} must have slots and no __post_init__")
    names: dict[str, Any] = {}
    parameters, lines = [], []
    for field in fields:
        if not field.init or field.kw_only or field.default_factory is not dataclasses.MISSING:
            raise LocalClusterMisuse(f"{value.__name__}.{field.name} is not a plain field")
        names[f"set_{field.name}"] = vars(value)[field.name].__set__
        has_default = field.default is not dataclasses.MISSING
        if has_default:
            names[f"default_{field.name}"] = field.default
        parameters.append(f"{field.name}=default_{field.name}" if has_default else field.name)
        lines.append(f"    set_{field.name}(self, {field.name})")
    text = f"def __init__(self, {', '.join(parameters)}):\n" + "\n".join(lines)
    exec(text, names)  # noqa: S102  as `dataclasses` itself does, from the names of the fields alone
    names["__init__"].__qualname__ = f"{value.__qualname__}.__init__"
    value.__init__ = names["__init__"]  # type: ignore[method-assign]
    return value
