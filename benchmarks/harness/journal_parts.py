"""The parts of docs/performance.md that `journal.py` and `resumable.py` have measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from harness.figures import Data, Figures
from harness.markdown import number, table
from harness.results import read_results


def _load(name: str) -> Figures:
    return Figures(read_results(name))


def _pair(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return " / ".join(number(value, 1 if value >= 1 else 2) for value in (low, high))


def append_part(figures: Figures) -> str:
    """What the stores take."""
    found = _load("journal.json")
    cases = sorted(
        {(run["turns"], run["batch"]) for run in found.data["runs"] if run["workload"] == "append"}
    )
    rows = []
    for server in found.data["servers"]:
        row = [server["title"]]
        for turns, batch in cases:
            per_s, cpu, engine, p50, p99 = (
                found.median("append", server["name"], key, turns=turns, batch=batch)
                for key in ("per_s", "cpu_us", "engine_us", "p50_ms", "p99_ms")
            )
            if per_s is None:
                row += ["failed" if found.failure("append", server["name"]) else "-", "-"]
            else:
                us = number(cpu, 2) + (f" + {number(engine, 2)}" if engine else "")
                row += [f"{per_s:,.0f} ({us})", _pair(p50, p99)]
        rows.append(row)
    head = [""]
    for turns, batch in cases:
        head += [f"{turns} x {batch}: chunks/s (us)", "p50 / p99, ms"]
    return table(head, rows)


def late_part(figures: Figures) -> str:
    """From a producer's write to a follower's receipt."""
    found = _load("journal.json")
    rows = []
    for server in found.data["servers"]:
        figure = {
            key: found.median("latency", server["name"], key)
            for key in (
                "here_p50_ms", "here_p99_ms", "elsewhere_p50_ms", "elsewhere_p99_ms",
                "owner_us", "follower_us", "engine_us",
            )
        }  # fmt: skip
        rows.append([
            server["title"],
            _pair(figure["here_p50_ms"], figure["here_p99_ms"]),
            _pair(figure["elsewhere_p50_ms"], figure["elsewhere_p99_ms"]),
            number(figure["owner_us"]),
            number(figure["follower_us"] or None),
            number(figure["engine_us"] or None),
        ])  # fmt: skip
    head = ["", "same node, ms", "another node, ms", "owner, us", "other node, us", "its server, us"]
    return table(head, rows)


def commands_part(figures: Figures) -> str:
    """What a Redis executes for a turn."""
    found = _load("journal.json")
    runs = [run for run in found.data["runs"] if run["workload"] == "commands" and "failed" not in run]
    rows = []
    for case in dict.fromkeys(run["case"] for run in runs):
        of_case = [run for run in runs if run["case"] == case]
        names = dict.fromkeys(name for run in of_case for name in run if name.startswith("calls "))
        calls = {
            name.removeprefix("calls "): statistics.median(run.get(name, 0.0) for run in of_case)
            for name in names
        }
        calls.pop("evalsha", None)
        most = sorted(calls.items(), key=lambda one: -one[1])[:6]
        figure = {
            key: statistics.median(run[key] for run in of_case) for key in ("scripts", "all", "engine_ms")
        }
        rows.append([
            case,
            number(figure["scripts"]),
            number(figure["all"]),
            number(figure["engine_ms"], 2),
            ", ".join(f"{name} {count:,.0f}" for name, count in most),
        ])  # fmt: skip
    return table(
        ["a turn of 100 chunks", "scripts", "commands in all", "Redis's CPU, ms", "most of them"], rows
    )


def workers_part(figures: Figures) -> str:
    """One worker and two."""
    found = _load("journal.json")
    rows = []
    for name, title in (("workers-1", "1 worker"), ("workers-2", "2 workers")):
        cpu, p50, p99 = (found.median("workers", name, key) for key in ("cpu_us", "p50_ms", "p99_ms"))
        levels = found.runs("levels", name)
        passed = [run for run in levels if run["passed"]]
        best = max(passed, key=lambda run: float(run["turns"]), default=None)
        failed = any(not run["passed"] for run in levels)
        rows.append([
            title,
            number(cpu),
            _pair(p50, p99),
            "-" if best is None else f"{best['turns']:,} turns, {best['events_per_s']:,.0f}/s{'' if failed else '+'}",
            "-" if best is None else number(best["cpu_us"]),
            "-" if best is None else f"{best['server_cpu']:.2f} + {best['load_cpu']:.2f}",
        ])  # fmt: skip
    turns = next((run["turns"] for run in found.data["runs"] if run["workload"] == "workers"), 0)
    head = [
        "", f"{turns} turns: us a chunk", "p50 / p99, ms", "the highest level", "us a chunk there",
        "cores of workers + load there",
    ]  # fmt: skip
    return table(head, rows)


def resumed_part(figures: Figures) -> str:
    """A stream at full speed, and streams at a model's pace, through to who has resumed them."""
    found = _load("resumable.json")
    paced = found.data["paced"]
    rows = []
    for server in found.data["servers"]:
        row = [f"**{server['title']}**" if server["ours"] else server["title"]]
        for workload in ("resumed", "paced"):
            figure = {
                key: found.median(workload, server["name"], key)
                for key in ("per_s", "producer_us", "resumed_us", "redis_us", "p50_ms", "p99_ms", "back_ms")
            }
            us = " + ".join(number(figure[key]) for key in ("producer_us", "resumed_us", "redis_us"))
            if workload == "resumed":
                row += [number(figure["per_s"]), us, number(figure["back_ms"])]
            else:
                row += [_pair(figure["p50_ms"], figure["p99_ms"]), us]
        rows.append(row)
    chunks = f"{found.data['chunks']:,}"
    head = [
        "", f"{chunks} at full speed: chunks/s", "us a chunk", f"to come back to {chunks}, ms",
        f"{paced['streams']} x {paced['rate']}/s: p50 / p99, ms", "us a chunk",
    ]  # fmt: skip
    return table(head, rows) + "\nMicroseconds are the producer's + the other process's + Redis's.\n"


def killed_part(figures: Figures) -> str:
    """What clients have whose producer was killed."""
    found = _load("resumable.json")
    within = f"{found.data['end_within_s']:g}"
    rows = []
    for server in found.data["servers"]:
        runs = found.runs("killed", server["name"])
        for which, title in (("before", "resumed before"), ("after", "comes after")):
            if runs:
                rows.append([
                    f"{server['title']}, {title}",
                    _range([run["seen"] for run in runs]),
                    _range([run[f"{which}_received"] for run in runs]),
                    _range([max(run["seen"] - run[f"{which}_received"], 0) for run in runs]),
                    "; ".join(dict.fromkeys(_end(run, which, within) for run in runs)),
                    _range([run[f"{which}_s"] for run in runs if f"{which}_s" in run]),
                ])  # fmt: skip
    head = ["", "the first client had", "it got", "of that lost", "told", "after, s"]
    return table(head, rows)


def _end(run: Data, which: str, within: str) -> str:
    how = run[f"{which}_how"]
    return f"nothing in {within} s" if how == "none" else f"`{how}`"


def _range(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = (f"{value:g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def journals_part(figures: Figures) -> str:
    """What this was measured on, and beside what."""
    text = ""
    for name in ("journal.json", "resumable.json"):
        data = _load(name).data
        machine, versions = data["machine"], dict(data["versions"])
        python = versions.pop("python")
        names = ", ".join(f"{one} {version}" for one, version in sorted(versions.items()))
        tool = name.replace("json", "py")
        others = (
            f"**other programs took {data['others_cores']:g} of the cores meanwhile**"
            if data["others_cores"] >= 0.2
            else "the machine was calm"
        )
        text += (
            f"{tool}: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {python}; "
            f"{data['started_at'][:10]}, {data['minutes']:g} minutes, {len(data['runs'])} runs; {others}. {names}.\n\n"
        )
        for one, reason in data["missing"].items():
            text += f"Not measured: {one} ({reason}).\n\n"
        if data.get("left_out"):
            text += f"Without {', '.join(sorted(set(data['left_out'])))}.\n\n"
    return text.rstrip("\n") + "\n"


JOURNAL_PARTS: dict[str, Callable[[Figures], str]] = {
    "append": append_part,
    "late": late_part,
    "commands": commands_part,
    "workers": workers_part,
    "resumed": resumed_part,
    "killed": killed_part,
    "journals": journals_part,
}
