"""Makes a group of three ranks again and again in the same processes, and kills a rank now and then.

Every round has another epoch and key, permuted ranks, and shared memory and TCP in turn; some split the group.
In every tenth round one process kills itself once the group stands; the others must learn it as the loss of a
peer, and a new process takes its place. The first process lives through all rounds: what it holds at the end it
must have held after the first ones.

    python -m macmesh_rdma.testing.rebuilds --count 500 --json
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

RANKS = 3
WARM_UP_ROUNDS = 10
KILL_EVERY = 10
SPLIT_EVERY = 5
ROUND_SECONDS = 20.0
MOST_RSS_GROWTH_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Holdings:
    """What a process holds."""

    descriptors: int
    threads: int
    rss_bytes: int


@dataclasses.dataclass(frozen=True)
class Drill:
    """What came out of the rounds.

    Attributes:
        rounds: Groups made.
        killed: Processes killed, each noticed by all others.
        seconds: Of everything, with the start of processes.
        slowest_round_seconds: Of the rounds without the start of processes.
        before: What the first process held after the first rounds.
        after: What it held at the end.
        shm_names: Names of ours left in /dev/shm.
    """

    rounds: int
    killed: int
    seconds: float
    slowest_round_seconds: float
    before: Holdings
    after: Holdings
    shm_names: int

    @property
    def leaks(self) -> list[str]:
        """What has grown; empty: nothing."""
        found = []
        for name in ("descriptors", "threads"):
            before, after = getattr(self.before, name), getattr(self.after, name)
            if after > before:
                found.append(f"{name}: {before} before, {after} after")
        if self.after.rss_bytes - self.before.rss_bytes > MOST_RSS_GROWTH_BYTES:
            found.append(f"resident bytes: {self.before.rss_bytes} before, {self.after.rss_bytes} after")
        if self.shm_names:
            found.append(f"{self.shm_names} names in /dev/shm")
        return found


def drill(count: int, *, seed: int = 0, kill_every: int = KILL_EVERY) -> Drill:
    """Runs so many rounds.

    Raises:
        RuntimeError: a round did not go as it should; says which and what each process said.
    """
    names = _names()
    rng = random.Random(seed)  # noqa: S311  a drill that can be repeated, no secret
    began = time.monotonic()
    before: Holdings | None = None
    last: Holdings | None = None
    killed, slowest = 0, 0.0
    processes = [_Process() for _ in range(RANKS)]
    try:
        for number in range(count):
            victim = rng.randrange(1, RANKS) if kill_every and number % kill_every == kill_every - 1 else None
            ranks = rng.sample(range(RANKS), RANKS)
            order = {
                "epoch": [1, 1, number],
                "key": secrets.token_hex(32),
                "provider": "shm" if number % 2 else "tcp",
                "endpoints": [processes[ranks.index(rank)].endpoint for rank in range(RANKS)],
                "loss": victim is not None,
                "split": number % SPLIT_EVERY == 0 and victim is None,
            }
            started = time.monotonic()
            for index, process in enumerate(processes):
                process.tell({**order, "rank": ranks[index], "die": index == victim})
            told = [None if index == victim else process.hear() for index, process in enumerate(processes)]
            slowest = max(slowest, time.monotonic() - started)
            if any(words is not None and "held" not in words for words in told):
                raise RuntimeError(
                    f"round {number}, ranks {ranks}, {order['provider']}, victim {victim}: {told}"
                )
            if victim is not None:
                killed += processes[victim].end() == -signal.SIGKILL
                processes[victim] = _Process()
            first = told[0]
            if first is not None:
                last = Holdings(*first["held"])
            if number == min(WARM_UP_ROUNDS, count) - 1:
                before = last
    finally:
        for process in processes:
            process.end()
    if before is None or last is None:
        raise RuntimeError("a drill has at least one round")
    return Drill(count, killed, time.monotonic() - began, slowest, before, last, len(_names_left(names)))


def _names() -> set[str]:
    shm = Path("/dev/shm")  # noqa: S108  only looked at
    return {path.name for path in shm.glob("macmesh-*")} if shm.is_dir() else set()


def _names_left(before: set[str]) -> set[str]:
    """Names that are new, and not in the hands of something else that runs on this machine."""
    names = _names() - before
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        with contextlib.suppress(OSError):
            mapped = maps.read_text()
            names = {name for name in names if name not in mapped}
    return names & _names()


class _Process:
    """A process that takes part, as the drill sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603  this very module
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--take-part"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoint = self.hear()["endpoint"]

    def tell(self, words: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise AssertionError
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise AssertionError
        # Ends a wait for a process that hangs: its end of the pipe closes with it.
        timer = threading.Timer(ROUND_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
        words: dict[str, Any] = (
            json.loads(line) if line else {"error": "it ended, or was silent for too long"}
        )
        return words

    def end(self) -> int:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _take_part() -> None:
    """Joins the groups that stdin names, until it ends."""
    import mlx.core as mx  # noqa: PLC0415  only here

    from macmesh_rdma.errors import RemotePeerLostError  # noqa: PLC0415  same
    from macmesh_rdma.group import open_group  # noqa: PLC0415  same
    from macmesh_rdma.joining.endpoint import Endpoint  # noqa: PLC0415  only here, with mlx
    from macmesh_rdma.joining.listener import Listener  # noqa: PLC0415  same
    from macmesh_rdma.options import LinkOptions  # noqa: PLC0415  same

    options = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=3, max_outstanding=32)
    # MLX keeps streams for ever, each with a thread.
    streams = mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)
    with Listener("127.0.0.1", host_id="here") as listener:
        _say({"endpoint": listener.endpoint.encode()})
        for line in sys.stdin:
            order = json.loads(line)
            try:
                with open_group(
                    listener,
                    order["rank"],
                    [Endpoint.decode(text) for text in order["endpoints"]],
                    key=bytes.fromhex(order["key"]),
                    epoch=tuple(order["epoch"]),
                    options=options,
                    provider=order["provider"],
                    connect_seconds=ROUND_SECONDS / 2,
                    measure=False,
                ) as group:
                    if order["die"]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    try:
                        _work(group, streams)
                        if order["split"]:
                            _split(group)
                    except RemotePeerLostError:
                        if not order["loss"]:
                            raise
                    else:
                        if order["loss"]:
                            raise RuntimeError("nobody noticed the loss")
            except Exception as error:  # noqa: BLE001  told to the drill
                _say({"error": repr(error)})
            else:
                _say({"held": dataclasses.astuple(_holdings())})


def _work(group: Any, streams: tuple[Any, Any]) -> None:
    """A sum of all ranks and a message to the next one, checked."""
    import mlx.core as mx  # noqa: PLC0415  only in a process that takes part

    rank, size = group.rank, group.size
    try:
        total = mx.distributed.all_sum(mx.full((5000,), rank + 1, dtype=mx.int32), group=group.mlx)
        mx.eval(total)
        sending, receiving = streams
        sent = mx.distributed.send(mx.full((3,), rank), (rank + 1) % size, group=group.mlx, stream=sending)
        mx.async_eval(sent)  # type: ignore[no-untyped-call]  # the stub gives no types
        came = mx.distributed.recv((3,), mx.int32, (rank - 1) % size, group=group.mlx, stream=receiving)
        mx.eval(came, sent)
    except RuntimeError as error:
        group.raise_failure(error)
    if total.tolist() != [size * (size + 1) // 2] * 5000 or came.tolist() != [(rank - 1) % size] * 3:
        raise RuntimeError(f"rank {rank} got {total[:3].tolist()} and {came.tolist()}")


def _split(group: Any) -> None:
    """Even and odd ranks make groups of their own, the higher rank first, and sum their ranks."""
    import mlx.core as mx  # noqa: PLC0415  only in a process that takes part

    rank, size = group.rank, group.size
    part = group.mlx.split(rank % 2, size - rank)
    total = mx.distributed.all_sum(mx.array(rank), group=part)
    mx.eval(total)
    own = [r for r in range(size) if r % 2 == rank % 2]
    if (total.item(), part.size(), part.rank()) != (sum(own), len(own), own[::-1].index(rank)):
        raise RuntimeError(f"rank {rank} is {part.rank()} of {part.size()} with the sum {total.item()}")


def _holdings() -> Holdings:
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        threads, rss = int(fields["Threads"]), int(fields["VmRSS"].split()[0]) * 1024
    else:  # macOS tells the largest so far, in bytes
        threads, rss = threading.active_count(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Holdings(len(os.listdir("/dev/fd")), threads, rss)  # noqa: PTH208  entries vanish while they are listed


def _say(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Runs the drill, or takes part in one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="rounds (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the permutations and victims (default: 0)")
    parser.add_argument("--json", action="store_true", help="tell the outcome as JSON")
    parser.add_argument("--take-part", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.take_part:
        _take_part()
        return
    outcome = drill(arguments.count, seed=arguments.seed)
    told = {**dataclasses.asdict(outcome), "leaks": outcome.leaks}
    if arguments.json:
        _say(told)
    else:
        sys.stdout.writelines(f"{name}: {value}\n" for name, value in told.items())
    sys.exit(1 if outcome.leaks else 0)


if __name__ == "__main__":
    main()
