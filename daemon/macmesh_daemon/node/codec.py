"""Between the cluster core's plain values and the protobuf messages of the same names.

The mapping is found once, by reflection: class name, field names, and for enums the names of their values. A
field that one side lacks is an error at import, so the two cannot drift apart.
"""

import dataclasses
import enum
import inspect
import re
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from macmesh.v1 import peer_pb2, state_pb2, types_pb2
from macmesh_daemon.cluster import messages, state

from .errors import LocalCodecMismatch, LocalValueNotEncodable

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROTO_MODULES = (types_pb2, peer_pb2, state_pb2)


def _find_value_classes() -> dict[str, type]:
    """The dataclasses of the core that are messages, by name."""
    return {
        name: value
        for module in (messages, state)
        for name, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__ == module.__name__ and dataclasses.is_dataclass(value)
    }


def _find_message_class(name: str) -> type[Message]:
    for module in _PROTO_MODULES:
        found = getattr(module, name, None)
        if isinstance(found, type) and issubclass(found, Message):
            return found
    raise LocalCodecMismatch(f"no protobuf message is named {name}; add it to proto/macmesh/v1")


VALUE_CLASSES: dict[str, type] = _find_value_classes()
"""Every class that `to_proto` takes, by its name and that of its message."""

_MESSAGE_CLASSES: dict[str, type[Message]] = {name: _find_message_class(name) for name in VALUE_CLASSES}


def _value_enum(descriptor: EnumDescriptor) -> type[enum.Enum]:
    found = getattr(messages, descriptor.name, None)
    if isinstance(found, type) and issubclass(found, enum.Enum):
        return found
    raise LocalCodecMismatch(f"no enum of the cluster core is named {descriptor.name}")


def _enum_prefix(descriptor: EnumDescriptor) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", descriptor.name).upper() + "_"


@cache
def _fields(name: str) -> tuple[FieldDescriptor, ...]:
    return tuple(cast("Iterable[FieldDescriptor]", _MESSAGE_CLASSES[name].DESCRIPTOR.fields))


def _check_mapping() -> None:
    for name, value_class in VALUE_CLASSES.items():
        own = {field.name for field in dataclasses.fields(value_class)}
        wire = {field.name for field in _fields(name)}
        if own != wire:
            raise LocalCodecMismatch(f"{name}: the class and the message differ in {sorted(own ^ wire)}")
        for field in _fields(name):
            if field.message_type is not None and field.message_type.name not in VALUE_CLASSES:
                raise LocalCodecMismatch(f"{name}.{field.name}: no class is named {field.message_type.name}")
            if field.enum_type is not None:
                prefix = _enum_prefix(field.enum_type)
                names = {value.name.removeprefix(prefix) for value in field.enum_type.values}
                if names != {member.name for member in _value_enum(field.enum_type)}:
                    raise LocalCodecMismatch(f"{name}.{field.name}: the values of the two enums differ")


_check_mapping()


def _encode_one(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return to_proto(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_name[_enum_prefix(field.enum_type) + value.name].number
    return value


def to_proto(value: Any) -> Any:
    """Give the protobuf message of a value of the cluster core.

    Raises:
        LocalValueNotEncodable: The class has no message, or a field holds what protobuf cannot carry.
    """
    name = type(value).__name__
    if VALUE_CLASSES.get(name) is not type(value):
        raise LocalValueNotEncodable(f"{type(value)!r} is not a message of the cluster core")
    message = _MESSAGE_CLASSES[name]()
    for field in _fields(name):
        content = getattr(value, field.name)
        try:
            if field.is_repeated:
                getattr(message, field.name).extend([_encode_one(field, item) for item in content])
            elif field.message_type is not None:
                if content is not None:
                    getattr(message, field.name).CopyFrom(to_proto(content))
            else:
                setattr(message, field.name, _encode_one(field, content))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            if isinstance(error, LocalValueNotEncodable):
                raise
            raise LocalValueNotEncodable(f"{name}.{field.name} = {content!r}: {error}") from error
    return message


def _decode_one(field: FieldDescriptor, content: Any) -> Any:
    if field.message_type is not None:
        return from_proto(content)
    if field.enum_type is not None:
        known = _value_enum(field.enum_type)
        number = field.enum_type.values_by_number.get(content)
        # A newer peer may send a value that this version does not know.
        if number is None:
            return known["UNSPECIFIED"]
        return known[number.name.removeprefix(_enum_prefix(field.enum_type))]
    return content


def from_proto(message: Message) -> Any:
    """Give the value of the cluster core that a protobuf message stands for.

    Raises:
        LocalValueNotEncodable: The message has no class in the cluster core.
    """
    name = message.DESCRIPTOR.name
    if _MESSAGE_CLASSES.get(name) is not type(message):
        raise LocalValueNotEncodable(f"{message.DESCRIPTOR.full_name} has no class in the cluster core")
    arguments: dict[str, Any] = {}
    for field in _fields(name):
        content = getattr(message, field.name)
        if field.is_repeated:
            arguments[field.name] = tuple(_decode_one(field, item) for item in content)
        elif field.message_type is not None:
            arguments[field.name] = from_proto(content) if message.HasField(field.name) else None
        else:
            arguments[field.name] = _decode_one(field, content)
    return VALUE_CLASSES[name](**arguments)
