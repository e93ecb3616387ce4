"""The parts of docs/performance.md that `relay.py` and `transports.py` have measured."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures import Figures
from harness.markdown import number, run_line, table
from harness.results import read_results

MOST_TIMES = 1.2
"""How many times as much an event may cost over a WebSocket as over SSE."""
WORKLOADS = {
    "tokens": "W1: 100 turns at 50 deltas a second",
    "fanout": "W2: 1,000 viewers, 20 a second",
    "burst": "W3: one turn of 100,000 deltas",
}


def relay_part(figures: Figures) -> str:
    """What a token costs that is relayed from a model."""
    data = read_results("relay.json")
    found = Figures(data)
    text = ""
    for turns in sorted({run["turns"] for run in data["runs"]}):
        rows = []
        for server in data["servers"]:
            cpu, p50, p99, delivered, kb = (
                found.median("relay", server["name"], key, turns=turns)
                for key in ("cpu_us", "p50_ms", "p99_ms", "delivered", "kb")
            )
            title = f"**{server['title']}**" if server["ours"] else server["title"]
            if delivered is None:
                rows.append([title, "not borne", "-", "-", "-"])
            else:
                late = f"{number(p50)} / {number(p99)}"
                rows.append([title, number(cpu), late, f"{delivered:.0%}", number(kb)])
        head = [
            f"{turns} turns at 50 tokens a second",
            "CPU us a token",
            "p50 / p99, ms",
            "in time",
            "kB a turn",
        ]
        text += table(head, rows) + "\n"
    text += "".join(f"- {s['title']}: {s['less']}.\n" for s in data["servers"] if s["less"])
    return f"{text}\n{run_line(data)}"


def transports_part(figures: Figures) -> str:
    """What an event costs over a WebSocket, and over SSE."""
    data = read_results("transports.json")
    found = Figures(data)
    rows = []
    for workload, title in WORKLOADS.items():
        costs = [found.median(f"{workload}-{over}", "penstock", "cpu_us") for over in ("sse", "websocket")]
        sse, socket = costs
        times = socket / sse if sse and socket else None
        met = "-" if times is None else "yes" if times <= MOST_TIMES else "**no**"
        digits = 2 if workload == "burst" else 1
        rows.append([title, *(number(cost, digits) for cost in costs), number(times, 2), met])
    head = ["CPU us an event", "SSE", "WebSocket", "times", f"at most {MOST_TIMES:g} times"]
    return f"{table(head, rows)}\n{run_line(data)}"


PARTS: dict[str, Callable[[Figures], str]] = {"relay": relay_part, "transports": transports_part}
