"""The configuration of a node: what can be set, where it is read from, and how it is documented."""

from macmesh_daemon.config.errors import (
    ConfigError,
    LocalConfigFileError,
    LocalConfigKeyError,
    LocalConfigValueError,
)
from macmesh_daemon.config.fields import Config, FieldDoc, LogFormat, LogLevel, field_docs
from macmesh_daemon.config.load import (
    add_arguments,
    flags_from,
    load_config,
    replace,
    split_address,
    system_config_path,
    user_config_path,
)

__all__ = [
    "Config",
    "ConfigError",
    "FieldDoc",
    "LocalConfigFileError",
    "LocalConfigKeyError",
    "LocalConfigValueError",
    "LogFormat",
    "LogLevel",
    "add_arguments",
    "field_docs",
    "flags_from",
    "load_config",
    "replace",
    "split_address",
    "system_config_path",
    "user_config_path",
]
