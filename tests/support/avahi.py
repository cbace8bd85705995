"""What another implementation of mDNS needs in a network namespace: a message bus of its own, and a user."""

from pathlib import Path

BUS_ADDRESS = "unix:path=/run/test-bus"

DBUS_CONF = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=/run/test-bus</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="*"/><allow receive_type="*"/>
    <allow send_destination="*"/>
  </policy>
</busconfig>
"""
AVAHI_CONF = """[server]
host-name=neighbour
allow-interfaces=e0
use-ipv6=no
[publish]
publish-hinfo=no
publish-workstation=no
[rlimits]
"""


def write_files() -> list[tuple[Path, Path]]:
    """Writes the configurations, and a user named avahi that is root: where only root is mapped there is no other.

    Returns:
        Files, and what they are to be mounted over.
    """
    Path("/run/dbus.conf").write_text(DBUS_CONF, "utf-8")
    Path("/run/avahi.conf").write_text(AVAHI_CONF, "utf-8")
    mounts = []
    for name, entry in (("passwd", "avahi:x:0:0::/:/bin/false"), ("group", "avahi:x:0:")):
        file = Path("/run", name)
        file.write_text(f"root{entry.removeprefix('avahi')}\n{entry}\n", "utf-8")
        mounts.append((file, Path("/etc", name)))
    return mounts
