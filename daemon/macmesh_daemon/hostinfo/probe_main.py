"""Measures the memory bandwidth for about a second, keeps the result and prints it as one JSON object.

Run as ``python -m macmesh_daemon.hostinfo.probe_main --cache FILE --key KEY`` in a process of its own, so
that its memory and its threads are gone afterwards and nothing in the daemon waits for it. Daemons that
share the file take turns; those who come later find the result.
"""

import argparse
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from macmesh_daemon.files import exclusive
from macmesh_daemon.hostinfo.probe import BandwidthRecord, read_record, write_record

# Far beyond any cache, small beside any machine that holds a model.
_ARRAY_BYTES = 128 << 20
# Of two arrays together, at most an eighth of the free memory.
_FREE_MEMORY_DIVISOR = 16
_MAX_THREADS = 8
_MEASURE_SECONDS = 0.8
# Several copies per round, so that handing out the work weighs little on a fast machine.
_COPIES_PER_ROUND = 4

Array = npt.NDArray[np.float64]


def measure_gb_per_s(array_bytes: int, threads: int, seconds: float) -> float:
    """Return the best rate of copying one array to another, in 10⁹ bytes per second.

    Bytes read and bytes written both count.

    Args:
        array_bytes: Size of each of the two arrays.
        threads: Parts copied at once; numpy copies without the interpreter's lock.
        seconds: Rounds are repeated for about this long.
    """
    count = max(array_bytes // 8, threads)
    source = np.ones(count, dtype=np.float64)
    target = np.empty(count, dtype=np.float64)
    bounds = [count * part // threads for part in range(threads + 1)]
    parts = [slice(low, high) for low, high in itertools.pairwise(bounds)]

    def copy(part: slice, times: int = _COPIES_PER_ROUND) -> None:
        for _ in range(times):
            np.copyto(target[part], source[part])

    best_seconds = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, parts, [1] * threads))  # makes the pages of the target real
        deadline = time.perf_counter() + seconds
        while best_seconds == float("inf") or time.perf_counter() < deadline:
            started = time.perf_counter()
            list(pool.map(copy, parts))
            best_seconds = min(best_seconds, time.perf_counter() - started)
    return 2 * count * 8 * _COPIES_PER_ROUND / best_seconds / 1e9


def main() -> None:
    """Measure, unless the file already has a result for the key."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--key", required=True)
    arguments = parser.parse_args()
    with exclusive(arguments.cache.with_suffix(".lock")):
        record = read_record(arguments.cache, arguments.key)
        if record is None:
            free_bytes = psutil.virtual_memory().available
            threads = max(1, min(_MAX_THREADS, os.cpu_count() or 1))
            array_bytes = min(_ARRAY_BYTES, free_bytes // _FREE_MEMORY_DIVISOR)
            rate = measure_gb_per_s(array_bytes, threads, _MEASURE_SECONDS)
            record = BandwidthRecord(key=arguments.key, bandwidth_gb_per_s=round(rate, 1))
            write_record(arguments.cache, record)
    print(record.to_json())  # noqa: T201  the daemon reads it


if __name__ == "__main__":
    main()
