"""What a load test found, in words: one sentence to begin with, what to be wary of, what each time means."""

from __future__ import annotations

import math
import re

from penstock.bench.result import Distribution, Result

NBSP = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""
MICROSECONDS = "\N{MICRO SIGN}s"

TIMES = {
    "latency": ("Latency", "From when an event was due at the server to when it was here. It counts waiting in line."),
    "first_byte": ("First byte", "From when a connection was due to the first byte of its response."),
    "first_token": ("First token", "From when a connection was due to the first piece of the answer that can be read."),
    "gap": ("Gap", "Between two events of one connection: the most is the longest silence that a reader sat through."),
    "connect": ("Connect", "From when a connection was due to its open socket."),
    "turn": ("Turn", "From when a connection was due to the proper end of its answer."),
    "resume": ("Resume", "From when a client that had left was due to come back to the first event it was then sent."),
    "caught_up": ("Caught up", "From when a client that had left was due to come back to the end of its answer."),
    "cut": ("Cut", "From when a client stopped reading to when the server gave it up."),
    "kept": ("Kept", "From when a client vanished without a word to when the server gave it up."),
}  # fmt: skip
"""By the name in `Result.times`: how a person calls it, and what it is."""

_NINETY_NINE = {
    "latency": "arrived within",
    "gap": "of gaps between them were under",
    "first_token": "of first tokens came within",
    "first_byte": "of answers began within",
    "turn": "of turns were whole within",
    "resume": "were back within",
    "caught_up": "had caught up within",
    "cut": "of those who stopped reading were cut within",
    "kept": "of those who vanished were given up within",
    "connect": "were connected within",
}
"""What is true of 99 per cent; what comes first is what a run is about, unless its scenario says another."""
_MAIN_OF = {"churn": "turn", "resume": "resume", "half-open": "kept"}

_LOAD_IS_BOTTLENECK = 0.9
"""The share of its core from which a load process itself may be late."""


def count(number: float) -> str:
    """Write a whole number: `12,345`."""
    return f"{number:,.0f}" if math.isfinite(number) else "unknown"


def about(number: float) -> str:
    """Write a number to three digits, as one says it: `25,000` for 24,987."""
    if not math.isfinite(number):
        return "unknown"
    if abs(number) < 100:
        return f"{number:.3g}"
    unit = 10.0 ** (math.floor(math.log10(abs(number))) - 2)
    return f"{round(number / unit) * unit:,.0f}"


def milliseconds(time: float | None) -> str:
    """Write a time: `0.42 ms`, `23.4 ms`, `1,204 ms`, `12.34 s`."""
    if time is None or not math.isfinite(time):
        return "not measured"
    if abs(time) >= 10_000:
        return f"{time / 1000:,.{2 if abs(time) < 100_000 else 0}f}{NBSP}s"
    digits = 2 if abs(time) < 10 else 1 if abs(time) < 100 else 0
    return f"{time:,.{digits}f}{NBSP}ms"


def seconds(time_s: float) -> str:
    """Write a duration: `12 s`, `1.5 s`."""
    return f"{about(time_s)}{NBSP}s"


def percent(share: float) -> str:
    """Write a share of one: `41 %`."""
    return f"{share * 100:.0f}{NBSP}%" if math.isfinite(share) else "unknown"


def memory(size_kb: float | None) -> str:
    """Write a size in memory: `12.4 kB`, `61 MB`."""
    if size_kb is None or not math.isfinite(size_kb):
        return "not measured"
    for unit, factor in (("GB", 1e6), ("MB", 1e3)):
        if abs(size_kb) >= factor:
            return f"{size_kb / factor:,.3g}{NBSP}{unit}"
    return f"{size_kb:,.3g}{NBSP}kB"


def plural(number: int, noun: str) -> str:
    """Write a number of things: `1 error`, `2 errors`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def measured(result: Result) -> dict[str, Distribution]:
    """Return the times that were measured at least once, those that matter most first."""
    order = [*TIMES, *(name for name in result.times if name not in TIMES)]
    return {
        name: result.times[name]
        for name in order
        if name in result.times and result.times[name].count > 0 and math.isfinite(result.times[name].p99)
    }


def main_time(result: Result) -> str | None:
    """Return the name of the time that this scenario is about, None if nothing was measured."""
    times = measured(result)
    return next((name for name in (_MAIN_OF.get(result.scenario), *_NINETY_NINE) if name in times), None)


def rate(number: float, duration_s: float) -> float:
    """Return how many that is a second; not a number if there was no time."""
    return number / duration_s if duration_s > 0 else math.nan


def peak_open(result: Result) -> int:
    """Return the most connections that were open at once."""
    return max((moment.open for moment in result.timeline), default=result.opened)


def failed(result: Result) -> int:
    """Return the number of errors of all kinds."""
    return sum(result.errors.values())


def kinds_of_errors(result: Result) -> list[tuple[str, int]]:
    """Return the errors that occurred, the most frequent first."""
    return sorted(
        ((kind, number) for kind, number in result.errors.items() if number), key=lambda item: -item[1]
    )


def headline(result: Result) -> str:
    """Say the run in one sentence."""
    errors = failed(result)
    ending = plural(errors, "error") if errors else "no errors"
    if not result.started:
        return "No connection was begun."
    if not result.opened:
        return f"None of {plural(result.started, 'connection')} could be opened: {ending}."
    per_second = rate(result.events, result.duration_s)
    if result.scenario == "churn" and math.isfinite(per_second):
        opening = f"{about(rate(result.opened, result.duration_s))} new connections a second"
    else:
        opening = plural(peak_open(result) or result.opened, "connection")
    if result.events and math.isfinite(per_second):
        opening += f", {about(per_second)} events a second"
    else:
        opening += f", held for {seconds(result.duration_s)}"
    told = []
    name = main_time(result)
    if name is not None:
        told.append(f"99{NBSP}% {_NINETY_NINE[name]} {milliseconds(measured(result)[name].p99)}")
    if (
        result.scenario == "idle"
        and result.server is not None
        and result.server.kb_per_connection is not None
    ):
        told.append(f"{memory(result.server.kb_per_connection)} of the server's memory each")
    return f"{opening}: {', '.join([*told, ending])}."


def warnings(result: Result) -> list[str]:
    """Say what a reader of the figures has to know, in whole sentences; empty is best."""
    said = []
    if result.partial:
        said.append(
            f"The run was ended early: these are the figures of its first {seconds(result.duration_s)}."
        )
    if result.load_cpu > _LOAD_IS_BOTTLENECK:
        said.append(
            "The load tool itself was the bottleneck: one of its processes used"
            f" {percent(result.load_cpu)} of a core. The server may be better than these figures."
        )
    if result.options.get("clock") == "pace":
        said.append(
            "Latency was measured by pace, not by stamps: the events do not say when they were due, so each is"
            " compared with the one of its stream that kept the pace best. A delay that all share is not seen."
        )
    if result.opened < result.started:
        said.append(
            f"{count(result.started - result.opened)} of {plural(result.started, 'connection')} did not open."
        )
    if errors := failed(result):
        kinds = kinds_of_errors(result)
        most = ", ".join(f"{kind[:80]} ({count(number)})" for kind, number in kinds[:3])
        said.append(f"{plural(errors, 'error')}: {most}{' and others' if len(kinds) > 3 else ''}.")
    return said


def without_password(url: str) -> str:
    """Return a URL as it may be passed on."""
    return re.sub(r"//[^/?#]*@", "//", url)
