"""Reading the configuration: flags, then environment, then the user's file, then the system's file."""

import argparse
import dataclasses
import ipaddress
import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from macmesh_daemon.config.errors import (
    LocalConfigFileError,
    LocalConfigKeyError,
    LocalConfigValueError,
)
from macmesh_daemon.config.fields import Config, FieldDoc, field_docs
from macmesh_daemon.config.values import UnfitValueError, convert

ENV_PREFIX = "MACMESH_"
#: Names the user's file; it is no field, and then the file must exist.
CONFIG_ENV = "MACMESH_CONFIG"
FILE_NAME = "config.toml"

#: Variables of MLX that stand for a setting which is set nowhere else.
_FOREIGN = {"MLX_JACCL_NUM_BUFFERS": "link_num_buffers"}

_MAX_PORT = 65535


def user_config_path() -> Path:
    """Return where the user's file lies."""
    return platformdirs.user_config_path("macmesh", appauthor=False) / FILE_NAME


def system_config_path() -> Path:
    """Return where the system's file lies."""
    return platformdirs.site_config_path("macmesh", appauthor=False) / FILE_NAME


def load_config(
    flags: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    config_path: Path | None = None,
    system_path: Path | None = None,
) -> Config:
    """Read the configuration from all its sources; what comes first wins, field by field.

    1. ``flags``; 2. ``MACMESH_<FIELD>`` in ``env``; 3. the user's file; 4. the system's file; 5. for
    ``link_num_buffers`` MLX's ``MLX_JACCL_NUM_BUFFERS``; 6. the defaults.

    Args:
        flags: Field name to value, as ``flags_from`` gives them. None values count as absent.
        env: The environment; ``os.environ`` by default.
        config_path: The user's file; it must exist. By default ``MACMESH_CONFIG``, which must exist too, else
            ``user_config_path()``, which need not.
        system_path: The system's file; ``system_config_path()`` by default. It need not exist.

    Raises:
        LocalConfigFileError: A file is missing, unreadable or no TOML.
        LocalConfigKeyError: A file, variable or flag names no field.
        LocalConfigValueError: A value does not fit its field or contradicts another.
    """
    environment = os.environ if env is None else env
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(raw: Mapping[str, Any], *, where: str, textual: bool) -> None:
        for name, value in raw.items():
            values[name] = _convert(name, value, where=where, textual=textual)
            sources[name] = where

    for variable, name in _FOREIGN.items():
        if environment.get(variable):
            take({name: environment[variable]}, where=variable, textual=True)
    system_file = system_config_path() if system_path is None else system_path
    user_file, must_exist = _user_file(config_path, environment)
    for path, required in ((system_file, False), (user_file, must_exist)):
        take(_read_file(path, required=required), where=str(path), textual=False)
    take(_from_env(environment), where="the environment", textual=True)
    take(_known(flags or {}, where="the command line"), where="the command line", textual=True)
    config = Config(**values)
    _check_together(config, sources)
    return config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE`` and one ``--flag`` per field to a parser."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (TOML)")
    types = typing.get_type_hints(Config)
    group = parser.add_argument_group("settings", "each overrides MACMESH_<NAME> and the configuration files")
    for name, doc in field_docs().items():
        flag = f"--{name.replace('_', '-')}"
        text = doc.meaning.replace("%", "%%")
        if types[name] is bool:
            group.add_argument(
                flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            metavar = doc.unit.upper() or "VALUE"
            group.add_argument(flag, dest=name, default=None, metavar=metavar, help=text)


def flags_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pick the fields that were given on the command line."""
    given = ((name, getattr(arguments, name, None)) for name in field_docs())
    return {name: value for name, value in given if value is not None}


def split_address(text: str) -> tuple[str, int]:
    """Split ``host:port``, ``[ipv6]:port`` included.

    Raises:
        ValueError: It is not of this form.
    """
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not separator
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) <= _MAX_PORT
        or not host.strip("[]")
        or (":" in host and not bracketed)
        or any(character.isspace() for character in host)
    ):
        raise ValueError(f"expected host:port or [ipv6]:port, not {text!r}")
    return (host[1:-1] if bracketed else host), int(port)


def _user_file(config_path: Path | None, env: Mapping[str, str]) -> tuple[Path, bool]:
    if config_path is not None:
        return config_path, True
    if env.get(CONFIG_ENV):
        return Path(env[CONFIG_ENV]).expanduser(), True
    return user_config_path(), False


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        if required:
            raise LocalConfigFileError(f"{path}: there is no such file") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise LocalConfigFileError(f"{path}: cannot be read: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LocalConfigFileError(f"{path}: is no TOML: {error}") from error
    return _known(values, where=str(path))


# What these name is not a setting of the daemon: its file, the socket that a client wants, and the cables of the
# verbs library that stands in for RDMA devices.
_NOT_SETTINGS = frozenset({CONFIG_ENV, "MACMESH_SOCKET", "MACMESH_FAKEVERBS", "MACMESH_FAKEVERBS_HOST"})


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, value in env.items():
        if variable.startswith(ENV_PREFIX) and variable not in _NOT_SETTINGS:
            found[variable.removeprefix(ENV_PREFIX).lower()] = value
    return _known(found, where="the environment", label=lambda name: ENV_PREFIX + name.upper())


def _known(
    values: Mapping[str, Any], *, where: str, label: typing.Callable[[str], str] = str
) -> dict[str, Any]:
    names = field_docs()
    for name in values:
        if name not in names:
            close = _closest(name, names)
            hint = f"; did you mean {label(close)}?" if close else ""
            raise LocalConfigKeyError(f"{where}: there is no setting {label(name)}{hint}")
    return {name: value for name, value in values.items() if value is not None}


def _closest(name: str, names: Mapping[str, FieldDoc]) -> str | None:
    import difflib  # noqa: PLC0415  only errors need it, and every start of the CLI would pay

    found = difflib.get_close_matches(name, names, n=1)
    return found[0] if found else None


def _convert(name: str, value: Any, *, where: str, textual: bool) -> Any:
    doc = field_docs()[name]
    kind = typing.get_type_hints(Config)[name]
    try:
        result = convert(value, kind, unit=doc.unit, textual=textual)
        if isinstance(result, int | float) and not isinstance(result, bool):
            _check_range(result, doc)
        _check_addresses(name, result)
    except ValueError as error:
        raise LocalConfigValueError(f"{where}: {name}: {error}") from error
    return result


def _check_addresses(name: str, value: Any) -> None:
    if name == "seeds":
        for seed in value:
            split_address(seed)
    elif name == "advertise_addresses":
        for address in value:
            ipaddress.ip_address(address)
    elif name == "listen_host":
        ipaddress.ip_address(value)


def _check_range(value: float, doc: FieldDoc) -> None:
    unit = f" {doc.unit}" if doc.unit else ""
    if doc.minimum is not None and value < doc.minimum:
        raise UnfitValueError(f"{value} is below the least value, {doc.minimum}{unit}")
    if doc.maximum is not None and value > doc.maximum:
        raise UnfitValueError(f"{value} is above the greatest value, {doc.maximum}{unit}")


def _check_together(config: Config, sources: Mapping[str, str]) -> None:
    ordered = (
        (
            "heartbeat_interval_seconds",
            "lease_seconds",
            "a coordinator would lose its lease between heartbeats",
        ),
        ("lease_seconds", "election_timeout_min_seconds", "two coordinators could lead at once"),
        ("election_timeout_min_seconds", "election_timeout_max_seconds", "nodes draw between the two"),
        (
            "election_timeout_min_seconds",
            "dead_after_seconds",
            "members would be lost before a late heartbeat",
        ),
    )
    for low, high, why in ordered:
        if not getattr(config, low) < getattr(config, high):
            where = " and ".join(dict.fromkeys(sources.get(name, "the default") for name in (low, high)))
            raise LocalConfigValueError(
                f"{where}: {low} ({getattr(config, low)}) must be less than "
                f"{high} ({getattr(config, high)}): {why}"
            )


def replace(config: Config, **changes: Any) -> Config:
    """Return a copy with some fields changed, checked as a whole.

    Raises:
        LocalConfigKeyError: There is no such field.
        LocalConfigValueError: A value does not fit its field or contradicts another.
    """
    where = "the program"
    values = {
        name: _convert(name, value, where=where, textual=False)
        for name, value in _known(changes, where=where).items()
    }
    changed = dataclasses.replace(config, **values)
    _check_together(changed, dict.fromkeys(values, where))
    return changed
