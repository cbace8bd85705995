"""The table of commands: what the top-level help prints, and where each command's module is."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        name: As typed.
        module: Below `macmesh_daemon.cli.commands`.
        summary: One line for the list of commands.
    """

    name: str
    module: str
    summary: str


COMMANDS: Final = (
    Command("status", "status", "the cluster at a glance: one line per node"),
    Command("plan", "plan", "how a model would be spread, without changing anything"),
    Command("load", "load", "serve a model"),
    Command("unload", "unload", "serve nothing"),
    Command("generate", "generate", "continue a text or answer a message"),
    Command("watch", "watch", "follow the cluster's decisions as they happen"),
    Command("events", "events", "what a node did, and whether the invariants held"),
    Command("drain", "drain", "take a node's stage away, so that its machine can be serviced"),
    Command("drill", "drill", "rehearse a fault on the running cluster"),
    Command("bench", "bench", "measure the model that is served"),
    Command("verify", "verify", "check that a split model gives the tokens of single-process mlx-lm"),
    Command("demo", "demo", "a throw-away cluster on this machine, from discovery to text"),
    Command("cluster", "cluster", "make a cluster, let machines in, shut them out"),
    Command("client", "client", "credentials for programs on other machines"),
    Command("rdma", "rdma", "what this machine remembers of its RDMA devices"),
    Command("service", "service", "install, remove or look at the service of this machine"),
)


def find(name: str) -> Command | None:
    """The command of that name."""
    return next((command for command in COMMANDS if command.name == name), None)
