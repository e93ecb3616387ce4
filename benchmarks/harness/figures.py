"""The figures of a comparison, from its raw runs: medians of rounds, highest levels that passed, ratios, the bar.

Nothing is measured here, and nothing that is shown comes from elsewhere.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from harness.search import up

Data = dict[str, Any]
BURST_DELTAS, SHORT_DELTAS = 100_000, 10
WHOLE = 0.97
LOAD_BOUND = 0.9
"""From this share of its core on, the load may be what a level failed for."""


@dataclass(frozen=True)
class Level:
    """The highest level that a server bore."""

    level: float
    events_per_s: float
    cpu_us: float
    p99_ms: float


class Figures:
    """What one file of results says.

    Args:
        data: the file.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self._runs: list[Data] = data["runs"]

    def runs(self, workload: str, server: str, **parameters: float) -> list[Data]:
        """Return the runs of a workload that did not fail."""
        return [
            run
            for run in self._all(workload, server, **parameters)
            if "failed" not in run and run.get("errors", 0) == 0
        ]

    def tried(self, workload: str, server: str) -> bool:
        """Say whether there are any runs of a workload."""
        return bool(self._all(workload, server))

    def failure(self, workload: str, server: str) -> str:
        """Return why a server has no figure in a workload; empty if it was not tried."""
        runs = self._all(workload, server)
        said = next((str(run["failed"]) for run in runs if "failed" in run), "")
        return said or ("no level passed" if runs else "")

    def median(self, workload: str, server: str, key: str, **parameters: float) -> float | None:
        """Return the median of a figure over all rounds; None if there is none."""
        values = [run[key] for run in self.runs(workload, server, **parameters) if key in run]
        return statistics.median(values) if values else None

    def rounds(self, workload: str, server: str) -> int:
        """Return how many runs of a workload there are."""
        return len(self.runs(workload, server))

    def highest(self, workload: str, server: str) -> Level | None:
        """Return the highest level that passed; None if none did."""
        by = _level_name(workload)
        passed = [run for run in self.runs(workload, server) if run.get("passed")]
        if not passed:
            return None
        best = max(passed, key=lambda run: float(run[by]))
        return Level(
            level=best[by],
            events_per_s=best["events_per_s"],
            cpu_us=best["cpu_us"],
            p99_ms=best["p99_ms"],
        )

    def mark(self, workload: str, server: str) -> str:
        """Return what is to be said of a server's highest level, or of that it was late.

        `+`: a higher level failed with the load's core full and the server's not. `*`: the search ended with more than
        a step between what passed and what failed.
        """
        by, runs = _level_name(workload), self._all(workload, server)
        passed = max((int(run[by]) for run in runs if run.get("passed")), default=0)
        beyond = [run for run in runs if run[by] > passed]
        bound = any(run.get("load_cpu", 0) > LOAD_BOUND > run.get("server_cpu", 1) for run in beyond)
        failed = min((int(run[by]) for run in beyond), default=None)
        return "+" * bound + "*" * (failed is None or failed > up(passed))

    def cost(self, workload: str, server: str) -> float | None:
        """Return what the bar compares: CPU microseconds (of an event; in `churn`, of a turn), or kB of a connection."""
        if workload in ("tokens", "fanout"):
            best = self.highest(workload, server)
            if best is not None:
                return best.cpu_us
            # None passed: what it cost where at least all arrived, late.
            whole = [run for run in self.runs(workload, server) if run.get("delivered", 0) >= WHOLE]
            return max(whole, key=lambda run: float(run["events_per_s"]))["cpu_us"] if whole else None
        if workload == "churn":
            each = self.median("churn", server, "cpu_us")
            return None if each is None else each * SHORT_DELTAS
        if workload == "idle":
            most = max((run["connections"] for run in self.runs("idle", server)), default=0)
            return self.median("idle", server, "kb", connections=most)
        return self.median(workload, server, "cpu_us")

    def _all(self, workload: str, server: str, **parameters: float) -> list[Data]:
        return [
            run
            for run in self._runs
            if run["workload"] == workload
            and run["server"] == server
            and all(run.get(name) == value for name, value in parameters.items())
        ]


def _level_name(workload: str) -> str:
    return "turns" if workload == "tokens" else "rate"


def summary(data: Data) -> str:
    """Return the figures as a table for a terminal."""
    figures = Figures(data)
    heads = ["", "W1 ev/s", "us", "W2 ev/s", "us", "W3 ev/s", "us", "W4 turns/s", "us", "idle kB"]
    rows = [heads]
    for server in data["servers"]:
        name = server["name"]
        row = [server["title"].replace("`", "")]
        for workload in ("tokens", "fanout"):
            if workload == "fanout" and not figures.tried(workload, name):
                workload = "latency"
            best = figures.highest(workload, name)
            row += (
                [f"{best.events_per_s:,.0f}{figures.mark(workload, name)}", f"{best.cpu_us:.1f}"]
                if best
                else [_short(figures.failure(workload, name)), ""]
            )
        burst, churn = (figures.median(workload, name, "wall_us") for workload in ("burst", "churn"))
        row.append(f"{1e6 / burst:,.0f}" if burst else _short(figures.failure("burst", name)))
        row.append(_number(figures.cost("burst", name)))
        row.append(f"{1e6 / churn / SHORT_DELTAS:,.0f}" if churn else _short(figures.failure("churn", name)))
        row.append(_number(figures.cost("churn", name), 0))
        row.append(_number(figures.cost("idle", name), 1) or _short(figures.failure("idle", name)))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.append(
        "us: CPU of the server for each event; in W4, each turn. +: the load was at its end, not the server. "
        "*: not searched to the end, it may bear more."
    )
    lines += [f"{name}: LEFT OUT, {reason}" for name, reason in data["missing"].items()]
    if data["left_out"]:
        names = ", ".join(sorted(set(data["left_out"])))
        lines.append(f"Left out for want of time, in part or as a whole: {names}.")
    return "\n".join(lines)


def _short(reason: str) -> str:
    return "failed" if reason else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
