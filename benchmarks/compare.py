"""penstock beside what people would use instead: the same work, the same load, the same machine, in turns.

    python benchmarks/compare.py [--quick] [--only WORKLOAD,…] [--servers NAME,…] [--output FILE]

Each server is one process on one core; the load, `penstock bench`, is on another. The whole of penstock is measured:
journal, grammar, positions, resume. See docs/performance.md for what the others do less of. Needs
`requirements/peers.txt`, and for all of the peers node, go, nginx and nchan; what can't be had is left out, loudly.

Every run is kept in the output. Ctrl-C stops everything, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from harness.figures import summary
from harness.machine import CORES, LOAD_CORE, describe
from harness.plan import FULL, QUICK, Step
from harness.results import session_results, write_results
from harness.servers import KINDS
from harness.session import Session


def main() -> int:
    """Run, print the figures, write the file; return the exit status."""
    parser = argparse.ArgumentParser(description="penstock beside its peers")
    parser.add_argument("--quick", action="store_true", help="some of it, within 2 minutes")
    parser.add_argument("--only", help="workloads, with commas")
    parser.add_argument("--servers", help="names, with commas")
    parser.add_argument("--output", type=Path, help="where to put all runs, as JSON")
    options = parser.parse_args()
    if len(CORES) < 2:
        print("Two cores are needed, one for the server and one for the load.", file=sys.stderr)
        return 1
    plan = QUICK if options.quick else FULL
    names = options.servers.split(",") if options.servers else list(plan.servers)
    steps = [step for step in plan.steps if not options.only or step.name in options.only.split(",")]
    unknown = set(names) - {kind.name for kind in KINDS}
    if unknown or not steps:
        print(f"There is no {', '.join(sorted(unknown)) or options.only}.", file=sys.stderr)
        return 1

    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    machine = describe()
    os.sched_setaffinity(0, {LOAD_CORE})
    kinds = [kind for kind in KINDS if kind.name in names]
    print_plan(steps, len(kinds), plan.minutes)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
            Session(kinds, Path(folder), plan.minutes) as session,
        ):
            for step in steps:
                if not step.optional or session.has_time(step.name, step.seconds(len(kinds))):
                    step.take(session)
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    mode = "quick" if options.quick else "full"
    data = session_results(session, kinds, started_at=started, machine=machine, mode=mode)
    if options.output:
        write_results(options.output, data)
    print(summary(data))
    return 0


def print_plan(steps: list[Step], servers: int, minutes: float) -> None:
    """Say what will be done, and how long it should take."""
    total = 0.0
    for step in steps:
        seconds = step.seconds(servers)
        total += seconds
        optional = "  (if there is time)" if step.optional else ""
        print(f"{seconds / 60:5.1f} min  {step.name:12} {step.what}{optional}", file=sys.stderr)
    print(f"{total / 60:5.1f} min  planned, {minutes:g} at most; {servers} servers", file=sys.stderr)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
