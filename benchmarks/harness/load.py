"""`penstock bench` as the harness calls it: one run on the load's core, and its result as flat figures.

Figures are of the measured time. An event is counted where it says when it was due, and so once even where a server
joined two into one; where none says so, in bursts, each event counts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TypeAlias

import msgspec

from harness.machine import LOAD_CORE, cpu_s
from harness.servers import Server
from penstock.bench.result import Result

Figures: TypeAlias = dict[str, float]

SLACK_S = 45.0
"""Over the time that a run should take, for a server that is overloaded, and for the load to start and end."""
NOTHING_MEASURED = 3
QUIET_S = 10.0
"""How long a server may go on working after its clients have left."""
QUIET_FOR_S = 0.1
QUIET_SHARE = 0.05


class LoadError(Exception):
    """A run failed. The message is a sentence."""


def bench(server: Server, scenario: str, takes_s: float, **options: float | str) -> Result:
    """Make one run. `takes_s` is what it should take.

    Raises:
        LoadError: it failed, or nothing was measured.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    if not server.kind.ours:
        arguments.append("--no-stop")  # They have no such route.
    command = [
        *("taskset", "-c", str(LOAD_CORE)),
        str(Path(sys.executable).with_name("penstock")),
        *("bench", server.url, f"--scenario={scenario}", f"--pid={server.pid}", "--workers=1", "--json=-"),
        *arguments,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, said = process.communicate(timeout=takes_s + SLACK_S)
        except subprocess.TimeoutExpired:
            raise LoadError(f"the load did not end within {takes_s + SLACK_S:.0f} s") from None
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(3.0)
                except subprocess.TimeoutExpired:
                    process.kill()
    if process.returncode not in (0, NOTHING_MEASURED):
        last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise LoadError(f"the load failed: {last[:200]}")
    result = msgspec.json.decode(out, type=Result)
    if not result.opened:
        raise LoadError(f"no stream was opened: {errors_of(result) or 'no answer'}")
    return result


def errors_of(result: Result) -> str:
    """Return what went wrong, in words; empty if nothing did."""
    return ", ".join(f"{count} {kind}" for kind, count in result.errors.items())


def figures(result: Result) -> Figures:
    """Return what one run says."""
    latency = result.times.get("latency")
    events = latency.count if latency else result.events
    found: Figures = {
        "events": events,
        "duration_s": round(result.duration_s, 4),
        "events_per_s": round(events / result.duration_s, 1) if result.duration_s else 0.0,
        "load_cpu": round(result.load_cpu, 3),
        "opened": result.opened,
        "errors": sum(result.errors.values()),
    }
    if latency:
        found |= {"p50_ms": round(latency.p50, 3), "p99_ms": round(latency.p99, 3)}
    if result.server and result.duration_s:
        found["server_cpu"] = round(result.server.cpu_s / result.duration_s, 3)
        if events:
            found["cpu_us"] = round(result.server.cpu_s * 1e6 / events, 3)
    return found


def wait_quiet(server: Server) -> None:
    """Wait until a server has nothing left to do from the run before."""
    deadline = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        before = cpu_s(server.pid)
        time.sleep(QUIET_FOR_S)
        if cpu_s(server.pid) - before < QUIET_FOR_S * QUIET_SHARE:
            return
