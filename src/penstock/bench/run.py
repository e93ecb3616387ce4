"""One load test, from a recipe to a result: the load processes, the server's process beside them, and the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from penstock.bench.fleet import Fleet
from penstock.bench.limits import BENCH, BenchLimits
from penstock.bench.plan import Plan, Progress, Report
from penstock.bench.recipe import Recipe
from penstock.bench.result import Result, Server
from penstock.bench.scenarios import Compiler, transport_of
from penstock.bench.server_process import Usage, usage
from penstock.bench.summary import Summary, machine
from penstock.bench.target import find_target
from penstock.bench.ulimit import raise_descriptor_limit

_LOOK_S = 0.1
"""How soon a Ctrl-C is seen."""
_SLACK_S = 30.0
"""For reports, which are some hundred megabytes at most, on a busy machine."""


class Run:
    """A run of `penstock bench`.

    Args:
        url: of the server.
        recipe: what to do.
        pid: the server's process, if it is on this machine.
        limits: what is done at most.

    Raises:
        ValueError: with a sentence, if it can't be done.
    """

    def __init__(
        self, url: str, recipe: Recipe, *, pid: int | None = None, limits: BenchLimits = BENCH
    ) -> None:
        self.recipe = recipe
        self.target = find_target(url)
        self.cores = len(os.sched_getaffinity(0))
        self._limits = limits
        self._pid = pid
        self.plan: Plan = Compiler(recipe, self.target.address, self.target.path, limits).plan()
        self._workers = recipe.workers or min(max(1, self.cores - 1), limits.workers)
        self._usage: dict[str, Usage] = {}
        connections = recipe.max_in_flight if recipe.scenario == "churn" else recipe.connections
        needed = -(-connections // self._workers) + limits.spare_descriptors
        possible = raise_descriptor_limit()
        if needed > possible:
            raise ValueError(
                f"{needed:,} open descriptors are needed for each load process, and {possible:,} is the limit here: "
                "take more --workers, fewer --connections, or raise it with `ulimit -n`"
            )
        self._look("before")

    @property
    def begins_s(self) -> float:
        """From the beginning to the measured time."""
        return self.plan.measure_from_s

    @property
    def ends_s(self) -> float:
        """From the beginning to the end of the measured time, at most."""
        return self.plan.measure_from_s + self.plan.measure_s

    def make(self, show: Callable[[list[Progress]], None], halted: Callable[[], bool]) -> Result:
        """Make it.

        Args:
            show: is given the newest progress of each load process, whenever there is some.
            halted: says whether to end early; asked ten times a second.

        Raises:
            FleetError: the load could not be made.
        """
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        partial = False
        newest: dict[int, Progress] = {}
        reports: list[Report] = []
        with Fleet(self.plan, self._workers, start_s=self._limits.start_s) as fleet:
            began_ns = fleet.go()
            looks = {"from": self.begins_s, "to": self.ends_s}
            while len(reports) < self._workers:
                now_s = (time.time_ns() - began_ns) / 1e9
                for name in [name for name, at_s in looks.items() if at_s <= now_s]:
                    del looks[name]
                    self._look(name)
                next_s = min((at_s - now_s for at_s in looks.values()), default=_LOOK_S)
                if halted() and not partial:
                    partial = True
                    fleet.halt()
                for number, message in fleet.receive(min(max(next_s, 0.0), _LOOK_S)):
                    if isinstance(message, Progress):
                        newest[number] = message
                        show(list(newest.values()))
                    elif isinstance(message, Report):
                        reports.append(message)
            if "to" in looks:
                self._look("to")
        return self._result(Summary(reports), started_at, partial)

    def _look(self, name: str) -> None:
        """Look at the server's process."""
        if self._pid is None:
            return
        try:
            self._usage[name] = usage(self._pid)
        except ValueError:
            if name == "before":
                raise

    def _result(self, summary: Summary, started_at: str, partial: bool) -> Result:
        recipe = self.recipe
        transport = transport_of(recipe)
        paced = recipe.scenario not in ("burst", "churn", "idle", "half-open")
        clock = "stamps" if summary.stamped else "pace" if paced else "none"
        times = summary.times()
        options: dict[str, str | int | float | bool] = {
            name: value
            for name, value in msgspec.to_builtins(recipe).items()
            if isinstance(value, str | int | float | bool) and value != ""
        }
        options |= {
            "transport": transport,
            "workers": self._workers,
            "clock": clock if "latency" in times else "none",
            "keepalives": summary.keepalives,
            **summary.counts,
        }
        return Result(
            scenario=recipe.scenario,
            transport=transport,
            url=self.target.url,
            started_at=started_at,
            duration_s=summary.duration_s,
            partial=partial or summary.overfull,
            options=options,
            machine=machine(self.cores),
            started=summary.started,
            opened=summary.opened,
            finished=summary.finished,
            events=summary.events,
            bytes=summary.bytes,
            errors=dict(summary.errors),
            times=times,
            timeline=summary.timeline(),
            load_cpu=summary.load_cpu,
            server=self._server(summary),
        )

    def _server(self, summary: Summary) -> Server | None:
        if self._pid is None or not {"before", "from", "to"} <= self._usage.keys():
            return None
        before, start, end = (self._usage[name] for name in ("before", "from", "to"))
        cpu_s = end.cpu_s - start.cpu_s
        most_open = max((moment.open for moment in summary.timeline()), default=0)
        return Server(
            pid=self._pid,
            cpu_s=cpu_s,
            cpu_us_per_event=cpu_s * 1e6 / summary.events if summary.events else None,
            rss_before_kb=before.rss_kb,
            rss_after_kb=end.rss_kb,
            kb_per_connection=(end.rss_kb - before.rss_kb) / most_open if most_open else None,
        )
