"""The machine and the user for whom the service is made."""

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from macmesh_launchd.errors import LocalOptionError


@dataclass(frozen=True, slots=True)
class Host:
    """What the plans depend on; tests make their own.

    Attributes:
        platform: As `sys.platform`; the service needs "darwin".
        effective_uid: Of this process; 0 for root.
        user: Who shall own the daemon: the user behind sudo, else the user of this process.
        uid: Of `user`.
        gid: The main group of `user`.
        home: The home folder of `user`.
        ram_bytes: Physical memory.
        service_owner_uid: Owner of property lists; launchd accepts root's only.
        launch_daemons: Where launchd looks for the property lists of the system domain.
        system_logs: Where logs of a daemon of root go.
    """

    platform: str
    effective_uid: int
    user: str
    uid: int
    gid: int
    home: Path
    ram_bytes: int
    service_owner_uid: int = 0
    launch_daemons: Path = Path("/Library/LaunchDaemons")
    system_logs: Path = Path("/Library/Logs")

    @classmethod
    def current(cls, user: str | None = None) -> Self:
        """This machine.

        Args:
            user: Who shall own the daemon; None for the user behind sudo, else the user of this process.

        Raises:
            LocalOptionError: There is no such user.
        """
        name = user or os.environ.get("SUDO_USER")
        try:
            entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
        except KeyError as error:
            raise LocalOptionError(f"there is no user {name!r} on this machine; name another one") from error
        return cls(
            platform=sys.platform,
            effective_uid=os.geteuid(),
            user=entry.pw_name,
            uid=entry.pw_uid,
            gid=entry.pw_gid,
            home=Path(entry.pw_dir),
            ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        )
