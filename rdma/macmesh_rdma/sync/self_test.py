"""Measures a hop between two processes, and whether it hangs: array, CPU-stream send and receive, compute.

Two short-lived processes of this machine pass an array to and fro. Each adds one on the default device (the GPU
where there is one), so every hop crosses between compute stream and CPU stream twice, and a value that arrives
wrong is noticed. They run once for each setting, and are killed at a deadline: then the setting hangs.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from macmesh_rdma.errors import LocalAddressError
from macmesh_rdma.ring.reserved_port import ReservedPort
from macmesh_rdma.sync.mode import VARIABLE, HopResult, SyncComparison

DEADLINE_SECONDS = 20.0
"""Of one run; starting mlx takes one or two seconds of it, compiling kernels on a GPU a few more."""
KILL_DEADLINE_SECONDS = 5.0
COMMAND = (sys.executable, "-m", "macmesh_rdma.sync.self_test_main")
RING_PAIR = "macmesh_rdma.sync.self_test_main:open_ring_pair"


async def compare_sync_modes(
    *,
    open_pair: str = RING_PAIR,
    hops: int = 200,
    elements: int = 1536,
    deadline_seconds: float = DEADLINE_SECONDS,
    command: Sequence[str] = COMMAND,
) -> SyncComparison:
    """Runs the self-test in both settings, ``safe`` first: where that fails, ``fast`` is not tried.

    Args:
        open_pair: "module:function" that opens a group of two in the child process; see `open_ring_pair`.
        hops: messages in each of the two measurements.
        elements: float32 numbers in a message; 1536 are 6 KiB, a token between two stages.
        deadline_seconds: of each setting.
        command: the program of a child; replaced in tests.
    """
    results: list[HopResult] = []
    for setting in ("0", "1"):
        if results and results[0].outcome != "passed":
            results.append(HopResult("failed", detail="not tried, as safe does not work"))
            break
        results.append(
            await run_self_test(
                environment={VARIABLE: setting},
                open_pair=open_pair,
                hops=hops,
                elements=elements,
                deadline_seconds=deadline_seconds,
                command=command,
            )
        )
    return SyncComparison(safe=results[0], fast=results[1])


async def run_self_test(
    *,
    environment: dict[str, str],
    open_pair: str = RING_PAIR,
    hops: int = 200,
    elements: int = 1536,
    deadline_seconds: float = DEADLINE_SECONDS,
    command: Sequence[str] = COMMAND,
) -> HopResult:
    """Runs two children with these variables added to the environment. Never fails; see `compare_sync_modes`."""
    try:
        return await _run_pair(
            environment,
            [
                *command,
                *("--open-pair", open_pair, "--hops", str(hops), "--elements", str(elements)),
            ],
            deadline_seconds,
        )
    except (OSError, LocalAddressError) as error:
        return HopResult("failed", detail=f"it could not be started: {error}")


async def _run_pair(
    environment: dict[str, str], command: Sequence[str], deadline_seconds: float
) -> HopResult:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(ReservedPort("127.0.0.1")) for _ in range(2)]
        hosts = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="macmesh-self-test-"))) / "hosts.json"
        )
        hosts.write_text(json.dumps([[port.address] for port in ports]))
        children: list[asyncio.subprocess.Process] = []
        try:
            for rank in range(2):
                children.append(  # noqa: PERF401  the first one must be known where the second one fails
                    await asyncio.create_subprocess_exec(
                        *command,
                        *("--rank", str(rank), "--hosts", str(hosts)),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=asyncio.subprocess.PIPE,
                        env={**os.environ, **environment},
                        start_new_session=True,
                    )
                )
            return await _result_of(children, deadline_seconds)
        finally:
            await _kill(children)


async def _result_of(children: Sequence[asyncio.subprocess.Process], deadline_seconds: float) -> HopResult:
    try:
        async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
            tasks = [group.create_task(child.communicate(), name="self-test") for child in children]
    except TimeoutError:
        return HopResult("hung", detail=f"it was killed after {deadline_seconds:g} s")
    output, errors = tasks[0].result()
    if any(child.returncode for child in children):
        lines = (errors or tasks[1].result()[1]).decode(errors="replace").strip().splitlines()
        codes = " and ".join(str(child.returncode) for child in children)
        return HopResult("failed", detail=f"exit status {codes}: {lines[-1] if lines else 'no reason given'}")
    return parse_result(output.decode(errors="replace"))


def parse_result(output: str) -> HopResult:
    """The result in what rank 0 printed."""
    try:
        value = json.loads(output)
        chained_us, evaluated_us = float(value["chained_us"]), float(value["evaluated_us"])
        wrong = str(value["wrong"])
    except (ValueError, KeyError, TypeError):
        return HopResult("failed", detail="it printed no result")
    if wrong:
        return HopResult("wrong", detail=wrong)
    return HopResult("passed", chained_us, evaluated_us)


async def _kill(children: Sequence[asyncio.subprocess.Process]) -> None:
    for child in children:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    for child in children:
        # A process that waits in the kernel's GPU driver cannot even be killed; it is left behind then.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_DEADLINE_SECONDS):
                await child.wait()
