"""A run of its own: some servers, a few rounds in which they take turns, and a file with all that was found."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from harness.machine import CORES, LOAD_CORE, describe
from harness.results import session_results, write_results
from harness.servers import Kind
from harness.session import Session


def run_rounds(
    description: str, kinds: Sequence[Kind], minutes: float, take: Callable[[Session, int], None]
) -> int:
    """Read the command line, take the rounds, write the file; return the exit status.

    Args:
        description: for the command's help.
        kinds: the servers.
        minutes: how long it may take.
        take: makes one round, of this number.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where to put all runs, as JSON")
    options = parser.parse_args()
    if len(CORES) < 2:
        print("Two cores are needed, one for the server and one for the load.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = describe()
    os.sched_setaffinity(0, {LOAD_CORE})
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        Session(kinds, Path(folder), minutes) as session,
    ):
        for number in range(options.rounds):
            take(session, number)
    if options.output:
        write_results(options.output, session_results(session, kinds, started_at=started, machine=machine))
    return 0
