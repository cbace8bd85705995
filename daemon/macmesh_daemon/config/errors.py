"""Errors of the configuration.

::

    ConfigError
    ├── LocalConfigFileError    a file is missing, unreadable or no TOML
    ├── LocalConfigKeyError     a key does not exist
    └── LocalConfigValueError   a value has the wrong type, is out of range or contradicts another

All are the operator's to mend; the message names the source (file, variable or flag) and the key.
"""


class ConfigError(Exception):
    """Base of all configuration errors."""


class LocalConfigFileError(ConfigError):
    """A configuration file is missing, unreadable or no TOML."""


class LocalConfigKeyError(ConfigError):
    """A key does not exist."""


class LocalConfigValueError(ConfigError):
    """A value has the wrong type, is out of range or contradicts another."""
