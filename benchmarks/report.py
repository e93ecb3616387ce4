"""Writes the figures of docs/performance.md, and the plot beside it, from the results that are in git.

    python benchmarks/report.py [--check]

What stands between `<!-- generated: NAME -->` and `<!-- end -->` is made here, and nowhere else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from harness.bar import bar
from harness.figures import SHORT_DELTAS, Figures
from harness.journal_parts import JOURNAL_PARTS
from harness.markdown import number, run_line, table
from harness.relay_parts import PARTS as RELAY_PARTS
from harness.results import read_results
from penstock.bench.plot import Bar, bar_plot

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"
OURS = "penstock"
_PART = re.compile(r"(<!-- generated: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)

WORKLOADS = {
    "tokens": "W1: turns at 50 deltas a second",
    "fanout": "W2: fan-out to 1,000 viewers",
    "burst": "W3: a turn of 100,000 deltas",
    "churn": "W4: a new connection with a turn of 10 deltas",
    "idle": "a quiet connection",
}


def machine_part(figures: Figures) -> str:
    """What was measured on, with what, when."""
    return run_line(figures.data)


def table_part(figures: Figures) -> str:
    """All servers in all workloads."""
    rows = []
    reasons = []
    for server in figures.data["servers"]:
        name = server["name"]
        cells = []
        for workload in WORKLOADS:
            cell = _cell(figures, workload, name)
            why = "" if cell else figures.failure(workload, name)
            if why:
                reasons.append(f"{server['title']}, {WORKLOADS[workload].partition(':')[0]}: {why}.\n")
            cells.append(cell or ("failed" if why else "-"))
        title = f"**{server['title']}**" if server["ours"] else server["title"]
        rows.append([title, *cells])
    held = max((run["connections"] for run in figures.data["runs"] if run["workload"] == "idle"), default=0)
    head = ["", "W1 events/s (us)", "W2 events/s (us)", "W3 events/s (us)", "W4 turns/s (us)"]
    text = table([*head, f"idle of {held:,}, kB"], rows)
    if reasons:
        text += "\nFailed: " + " ".join(reason.strip() for reason in reasons) + "\n"
    return text


def _cell(figures: Figures, workload: str, server: str) -> str:
    cost = figures.cost(workload, server)
    if cost is None:
        return ""
    if workload == "idle":
        return number(cost)
    if workload in ("tokens", "fanout"):
        best = figures.highest(workload, server)
        level = f"{best.events_per_s:,.0f}" if best else "late"
        return f"{level}{figures.mark(workload, server)} ({number(cost)})"
    wall = figures.median(workload, server, "wall_us")
    assert wall is not None
    each = SHORT_DELTAS if workload == "churn" else 1
    return f"{1e6 / wall / each:,.0f} ({number(cost, 2 if workload == 'burst' else 0)})"


def less_part(figures: Figures) -> str:
    """What the peers do less of."""
    return "".join(f"- {s['title']}: {s['less']}.\n" for s in figures.data["servers"] if s["less"])


def bar_part(figures: Figures) -> str:
    """What was to be reached."""
    rows = [
        [
            line.workload,
            line.against,
            line.wanted or "-",
            line.found or "not measured",
            line.by_level or "-",
            "-" if line.met is None else "yes" if line.met else "**no**",
        ]
        for line in bar(figures, OURS)
    ]
    return table(["", "against", "wanted", "found", "by the highest level", "met"], rows)


def latency_part(figures: Figures) -> str:
    """How late events are at 5,000 deliveries a second."""
    shapes = ((100, 50.0), (1_000, 5.0), (5_000, 1.0))
    rows = []
    for server in figures.data["servers"]:
        cells = []
        for viewers, rate in shapes:
            runs = [
                run
                for workload in ("latency", "fanout")
                for run in figures.runs(workload, server["name"], viewers=viewers, rate=rate)
                # More than was due is something beside it: the whole message, with all its times, when a turn ends.
                if "p50_ms" in run and run["events_per_s"] < 1.01 * viewers * rate
            ]
            cells.append(f"{number(runs[0]['p50_ms'])} / {number(runs[0]['p99_ms'])}" if runs else "-")
        rows.append([server["title"], *cells])
    return table(["p50 / p99, ms", *(f"{viewers:,} x {rate:g}/s" for viewers, rate in shapes)], rows)


def growth_part(figures: Figures) -> str:
    """How penstock's cost grows."""
    viewers = [
        [f"{run['viewers']:,}", f"{run['rate']:g}", number(run.get("cpu_us")), number(run.get("p99_ms"))]
        for run in figures.runs("viewers", OURS)
    ]
    chunks = [
        [f"{run['chunks']:,}", number(run["cpu_us"] * run["chunks"] / 1000, 2), number(run["cpu_us"], 2)]
        for run in figures.runs("chunks", OURS)
    ]
    return (
        table(["viewers", "events a second", "CPU us a delivery", "p99, ms"], viewers)
        + "\n"
        + table(["chunks in a turn", "CPU ms a turn", "CPU us a chunk"], chunks)
    )


def capacity_part(figures: Figures) -> str:
    """How much fits on a core and into a gigabyte."""
    kb = figures.cost("idle", OURS)
    tokens, fanout = figures.highest("tokens", OURS), figures.highest("fanout", OURS)
    burst, share = figures.cost("burst", OURS), figures.median("keepalive", OURS, "server_cpu")
    churn = figures.cost("churn", OURS)
    connections = max((run["connections"] for run in figures.runs("keepalive", OURS)), default=0)
    rows = [
        ["quiet connections per GB", number(2**20 / kb if kb else None)],
        ["turns at 50 deltas a second, each its own, per core", number(tokens.level if tokens else None, 0)],
        [
            "deliveries a second to viewers of one turn, per core",
            number(fanout.events_per_s if fanout else None),
        ],
        ["chunks a second of one turn at full speed, by CPU", number(1e6 / burst if burst else None)],
        ["new connections with a short turn a second, by CPU", number(1e6 / churn if churn else None)],
        [
            f"share of a core for the keepalives of {connections:,} quiet connections",
            "-" if share is None else f"{share:.1%}",
        ],
    ]
    for name, title in ((OURS, "memory"), (f"{OURS}-sqlite", "sqlite")):
        rows += [
            [f"to come back to a turn of 10,000 deltas, {what} ({title}), CPU ms", number(ms, 2)]
            for what, key in (("the first time", "first_ms"), ("after that", "ms"))
            if (ms := figures.median("resume", name, key)) is not None
        ]
    return table(["", "one process"], rows)


def crosscheck_part(figures: Figures) -> str:
    """What an independent load generator says of the same."""
    data = read_results("crosscheck.json")
    rows = [
        [
            run["what"],
            run["figure"],
            number(run["ours"], 2),
            f"{number(run['theirs'], 2)} ({run['tool']})",
            f"{run['difference']:+.1%}",
            number(run["known"], 2),
        ]
        for run in data["compared"]
    ]
    text = table(["", "figure", "`penstock bench`", "the other", "difference", "known"], rows)
    most = data["bottleneck"]
    text += (
        f"\nAgainst {most['server']}, the cheapest server here, `penstock bench` with one load process is the "
        f"bottleneck from about {most['events_per_s']:,.0f} events a second on, {most['load_cpu_us']:.1f} us each.\n"
    )
    return text


PARTS: dict[str, Callable[[Figures], str]] = {
    "machine": machine_part,
    "table": table_part,
    "less": less_part,
    "bar": bar_part,
    "latency": latency_part,
    "growth": growth_part,
    "capacity": capacity_part,
    "crosscheck": crosscheck_part,
    **JOURNAL_PARTS,
    **RELAY_PARTS,
}


def page(text: str, figures: Figures) -> str:
    """Return the page with its parts made anew."""
    return _PART.sub(lambda match: match[1] + "\n" + PARTS[match[2]](figures) + "\n" + match[3], text)


def plot(figures: Figures) -> str:
    """Return the plot: what an event, a turn, a connection costs in each server."""
    groups: dict[str, list[Bar]] = {}
    for workload, heading in WORKLOADS.items():
        unit = "kB" if workload == "idle" else "us"
        each = {"idle": "", "churn": " a turn"}.get(workload, " an event")
        bars = []
        for server in figures.data["servers"]:
            cost = figures.cost(workload, server["name"])
            if cost is not None:
                title = server["title"].replace("`", "")
                digits = 2 if workload == "burst" else 1
                bars.append(Bar(title, cost, f"{number(cost, digits)} {unit}", strong=server["ours"]))
        if bars:
            groups[f"{heading}, {unit}{each}"] = sorted(bars, key=lambda one: one.value or 0.0)
    return (
        bar_plot(
            "What it costs, less is better",
            "CPU microseconds of an event (of a turn in W4) and kilobytes of a quiet connection, by server.",
            groups,
            label="CPU of one core, in microseconds; memory in kB",
            width=760,
        )
        + "\n"
    )


def main() -> int:
    """Write the parts, or check that they are what they would be; return the exit status."""
    parser = argparse.ArgumentParser(description="the figures of docs/performance.md")
    parser.add_argument("--check", action="store_true", help="write nothing; say what is not as it should be")
    options = parser.parse_args()
    figures = Figures(read_results("bench.json"))
    status = 0
    for file, text in ((PAGE, page(PAGE.read_text(), figures)), (PLOT, plot(figures))):
        if not options.check:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            print(f"{file.name} is not what the results say: run benchmarks/report.py", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
