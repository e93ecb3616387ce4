"""A result as text: the table at the end of a run, and the line or panel while it goes on."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from penstock.bench.limits import BenchLimits
from penstock.bench.plan import Progress
from penstock.bench.result import Result
from penstock.bench.times import exact_p99

_PLAIN_S = 1.0
"""Between two lines, where stdout is no terminal."""


class Watcher:
    """Shows how a run goes: `with Watcher(console, begins_s, ends_s) as watcher`."""

    def __init__(self, console: Console, begins_s: float, ends_s: float) -> None:
        self._console = console
        self._begins_s = begins_s
        self._ends_s = ends_s
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._before: tuple[float, int] = (0.0, 0)
        self._rate = 0.0
        self._plain_at = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, traceback)

    def show(self, progress: list[Progress]) -> None:
        """Take the newest progress of each load process."""
        at_s = max(each.at_s for each in progress)
        events = sum(each.events for each in progress)
        before_s, before = self._before
        if at_s - before_s >= 0.5:
            self._rate = (events - before) / (at_s - before_s)
            self._before = (at_s, events)
        p99 = exact_p99(b"".join(each.lateness for each in progress))
        phase = "ramp" if at_s < self._begins_s else "measuring" if at_s < self._ends_s else "ending"
        line = (
            f"{at_s:5.1f} of {self._ends_s:g} s  {phase:<9} {sum(each.open for each in progress):>6,} open "
            f"{self._rate:>8,.0f} events/s  p99 {'-' if p99 is None else milliseconds(p99):>7}  "
            f"{sum(each.errors for each in progress):,} errors"
        )
        if self._live is not None:
            self._live.update(Text(line), refresh=True)
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + _PLAIN_S
            self._console.print(line, highlight=False, soft_wrap=True)


def print_result(console: Console, result: Result, notes: list[str]) -> None:
    """Print the table at the end."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column()
    facts.add_column(overflow="fold")
    partial = ", ended early" if result.partial else ""
    facts.add_row(
        "scenario", f"{result.scenario} over {result.transport}, {result.duration_s:.1f} s{partial}"
    )
    facts.add_row("url", result.url)
    facts.add_row(
        "streams", f"{result.started:,} started, {result.opened:,} opened, {result.finished:,} finished"
    )
    rate = result.events / result.duration_s if result.duration_s else 0.0
    facts.add_row("events", f"{result.events:,}, {rate:,.0f} a second, {size(result.bytes)}")
    errors = ", ".join(f"{count:,} {kind}" for kind, count in sorted(result.errors.items()))
    facts.add_row("errors", Text(errors or "none", style="red" if errors else ""))
    for name, words in (
        ("cut", "cut off"),
        ("held", "still held"),
        ("checked", "checked"),
        ("keepalives", ""),
    ):
        if result.options.get(name):
            facts.add_row(words or name, f"{result.options[name]:,}")
    if result.server is not None:
        server = result.server
        used = f"{server.cpu_s:.2f} s"
        if server.cpu_us_per_event is not None:
            used += f", {server.cpu_us_per_event:.1f} us an event"
        facts.add_row("server's CPU", used)
        memory = f"{server.rss_before_kb / 1024:.1f} to {server.rss_after_kb / 1024:.1f} MB"
        if server.kb_per_connection is not None:
            memory += f", {server.kb_per_connection:.1f} kB a connection"
        facts.add_row("its memory", memory)
    facts.add_row("load's CPU", f"{result.load_cpu:.0%} of a core, the busiest process")
    console.print(facts, highlight=False)
    if result.times:
        times = Table(box=SIMPLE_HEAD, padding=(0, 1))
        for name in ("time", "count", "p50", "p90", "p99", "p99.9", "max"):
            times.add_column(name, justify="left" if name == "time" else "right", no_wrap=True)
        for name, found in result.times.items():
            values = (found.p50, found.p90, found.p99, found.p999, found.max)
            times.add_row(name, f"{found.count:,}", *map(milliseconds, values))
        console.print(times, highlight=False)
    for expectation in result.expectations:
        found_text = "not measured" if expectation.found is None else f"{expectation.found:,.4g}"
        console.print(
            Text(
                f"{'held' if expectation.held else 'DID NOT HOLD'}: {expectation.text} (found {found_text})",
                style="green" if expectation.held else "bold red",
            )
        )
    for note in notes:
        console.print(Text(note, style="yellow"))


def notes_on(result: Result, limits: BenchLimits) -> list[str]:
    """Say what a reader must know before the numbers are believed."""
    notes: list[str] = []
    if result.load_cpu > limits.busy:
        notes.append(
            f"The load was the bottleneck: one of its processes used {result.load_cpu:.0%} of a core, so the times are "
            "at least partly its own. Take more --workers, on other cores than the server's."
        )
    if result.partial:
        notes.append("The run was ended early; the numbers are of the part that was made.")
    if result.options["clock"] == "pace":
        notes.append(
            "The events do not say when they were due: latency is how far they fell behind the best of their stream."
        )
    return notes


def milliseconds(value: float) -> str:
    """Write a time in three digits and its unit."""
    if value < 1:
        return f"{value * 1e3:.0f} us"
    if value < 1_000:
        return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    return f"{value / 1e3:.2f} s"


def size(count: int) -> str:
    """Write a number of bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
