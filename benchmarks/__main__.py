"""Compare the library with what it replaces, on a PostgreSQL (fsync on) and a memcached of the benchmark's own.

Everything runs on one core, the servers too: the ratios then compare work, and not how fast the kernel wakes another
core up, and no second core takes part of one side's work off the clock.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

from benchmarks import report
from benchmarks.rows import rows
from benchmarks.runner import measure
from benchmarks.stage import server_versions, set_up
from tests.servers import MemcachedServer, PostgresServer

SHORT = {"passes": 2, "rounds": 10}
FULL = {"passes": 10, "rounds": 30}
SETTINGS = {
    "autovacuum": "off",
    "max_wal_size": "4GB",  # no checkpoint in between, nor its full page writes
    "checkpoint_timeout": "1h",
    "jit": "off",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--full", action="store_true", help="all rows, some minutes (the default)")
    length.add_argument("--short", action="store_true", help="without the table of a million rows, below a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result as JSON")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw the result as SVG (needs matplotlib)")
    parser.add_argument("--core", type=int, help="the core that everything runs on (default: the last one)")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    if hasattr(os, "sched_setaffinity"):  # Linux; the servers inherit it
        core = max(os.sched_getaffinity(0)) if chosen.core is None else chosen.core
        os.sched_setaffinity(0, {core})
    with (
        MemcachedServer() as memcached,
        PostgresServer(fsync=True, settings=SETTINGS) as postgres,
        set_up(postgres.create_database(), memcached.host, memcached.port, large=not chosen.short) as stage,
    ):
        compared = rows(stage, large=not chosen.short)
        gc.collect()
        gc.freeze()  # what the imports left is nobody's cost
        measured = measure(
            compared,
            **(SHORT if chosen.short else FULL),
            progress=lambda row: print(f"  {row.what} / {row.against}", flush=True),
        )
        surroundings = {**report.machine(), **server_versions(stage)}
    report.show(measured, surroundings)
    if chosen.json:
        report.write_json(chosen.json, measured, surroundings)
    if chosen.chart:
        report.draw(chosen.chart, measured)


if __name__ == "__main__":
    main()
