"""What was to be reached, against whom, and whether it was."""

from __future__ import annotations

from dataclasses import dataclass

from harness.figures import Figures
from harness.plan import LIGHT_TURNS

RATIOS = (
    ("tokens", "W1", "at least", (("sse-starlette", 1.5), ("fastapi", 3.0))),
    ("tokens", "W1", "aim", (("starlette", 1.0), ("node", 1.0))),
    ("fanout", "W2", "at least", (("sse-starlette", 4.0), ("node", 1.0), ("go", 1.0))),
    ("fanout", "W2", "aim", (("node", 1.2), ("go", 1.2), ("nchan", 0.7))),
    ("burst", "W3", "at least", (("sse-starlette", 20.0), ("node", 1.5))),
    ("burst", "W3", "aim", (("node", 3.0),)),
    ("churn", "W4", "at least", (("sse-starlette", 1.3),)),
    ("churn", "W4", "aim", (("starlette", 1.5),)),
)
"""How many times as much CPU the other one uses for the same."""
BOUNDS = (
    ("a quiet connection", "idle", "kb", "kB", 24.0, 12.0),
    ("10,000 quiet connections", "keepalive", "server_cpu", "% of a core", 0.15, 0.05),
    ("resume of a 10,000-delta turn", "resume", "ms", "ms of CPU", 1.0, 0.3),
)
"""What one of ours may cost: at most, and the aim."""


@dataclass(frozen=True)
class Line:
    """One line of the bar. `met` is None where nothing was measured."""

    workload: str
    against: str
    wanted: str
    found: str
    by_level: str
    met: bool | None


def bar(figures: Figures, ours: str) -> list[Line]:
    """Return all lines."""
    titles = {server["name"]: server["title"] for server in figures.data["servers"]}
    lines = []
    for workload, name, kind, peers in RATIOS:
        own = figures.cost(workload, ours)
        for peer, wanted in peers:
            cost = figures.cost(workload, peer)
            ratio = None if own is None or cost is None else cost / own
            lines.append(
                Line(
                    workload=name,
                    against=titles.get(peer, peer),
                    wanted=f"{kind} {wanted:g}x",
                    found="" if ratio is None else f"{ratio:.2f}x",
                    by_level=_by_level(figures, workload, ours, peer),
                    met=None if ratio is None else ratio >= wanted,
                )
            )
        if (workload, kind) == ("tokens", "aim"):
            lines += _at_light(figures, ours, titles)
    for name, workload, key, unit, most, aim in BOUNDS:
        value = figures.cost("idle", ours) if workload == "idle" else figures.median(workload, ours, key)
        scale = 100 if unit.startswith("%") else 1
        for kind, bound in (("at most", most), ("aim", aim)):
            lines.append(
                Line(
                    workload=name,
                    against="",
                    wanted=f"{kind} {bound * scale:g} {unit}",
                    found="" if value is None else f"{value * scale:.2f} {unit}",
                    by_level="",
                    met=None if value is None else value <= bound,
                )
            )
    return lines


def _at_light(figures: Figures, ours: str, titles: dict[str, str]) -> list[Line]:
    """Return W1's ratios where all are far from their end: nothing was wanted of these, and they differ."""
    own = figures.median("tokens", ours, "cpu_us", turns=LIGHT_TURNS)
    lines = []
    for peer in [peer for workload, *_, peers in RATIOS if workload == "tokens" for peer, _ in peers]:
        cost = figures.median("tokens", peer, "cpu_us", turns=LIGHT_TURNS)
        found = f"{cost / own:.2f}x" if own and cost else ""
        lines.append(Line(f"W1 at {LIGHT_TURNS} turns", titles.get(peer, peer), "", found, "", None))
    return lines


def _by_level(figures: Figures, workload: str, ours: str, peer: str) -> str:
    """Return how many times as much ours bore: events a second at the highest level that passed, or in a burst.

    With the marks of both levels, as one that is not known to the end makes no ratio that is.
    """
    if workload in ("burst", "churn"):
        own, other = (figures.median(workload, name, "wall_us") for name in (ours, peer))
        return f"{other / own:.2f}x" if own and other else ""
    best, theirs = figures.highest(workload, ours), figures.highest(workload, peer)
    if best is None or theirs is None:
        return ""
    marks = figures.mark(workload, ours) + figures.mark(workload, peer)
    return f"{best.events_per_s / theirs.events_per_s:.2f}x{''.join(dict.fromkeys(marks))}"
