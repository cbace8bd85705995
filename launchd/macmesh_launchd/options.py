"""What to install."""

import sys
from dataclasses import dataclass

from macmesh_launchd.errors import LocalOptionError
from macmesh_launchd.host import Host

_MIB = 1024 * 1024
#: What the system keeps for itself, whatever limit is asked for: less than this makes macOS swap or hang.
RESERVED_FOR_SYSTEM_MB = 8 * 1024


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """What to install.

    Attributes:
        system: Run as root with root's folders, instead of as the installing user.
        wired_limit_mb: Also set `iogpu.wired_limit_mb` to this at every start; None leaves an installed one
            alone.
        program: The command of the daemon; the interpreter isolated from the user's environment by default.
        daemon_arguments: More arguments for the daemon.
    """

    system: bool = False
    wired_limit_mb: int | None = None
    program: tuple[str, ...] = (sys.executable, "-I", "-m", "macmesh_daemon.cli.macmeshd")
    daemon_arguments: tuple[str, ...] = ()

    def validate(self, host: Host) -> None:
        """Refuse what cannot be right on this machine.

        Raises:
            LocalOptionError: The wired limit leaves the system too little, or root would own a user's daemon.
        """
        if self.wired_limit_mb is not None:
            largest = host.ram_bytes // _MIB - RESERVED_FOR_SYSTEM_MB
            if largest < 1:
                raise LocalOptionError(
                    f"this machine has {host.ram_bytes // _MIB} MB of memory, of which the system needs"
                    f" {RESERVED_FOR_SYSTEM_MB}; leave the wired limit at its default"
                )
            if not 0 < self.wired_limit_mb <= largest:
                raise LocalOptionError(
                    f"a wired limit of {self.wired_limit_mb} MB is not possible here: choose 1 to {largest},"
                    f" which leaves {RESERVED_FOR_SYSTEM_MB} MB to the system"
                )
        if not self.system and host.uid == 0:
            raise LocalOptionError(
                "the daemon would run as root, with root's folders: install through sudo from the account"
                " that shall own it, name that account, or ask for a system service"
            )
