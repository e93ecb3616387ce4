"""The highest level that a server bears: found within a step, in few tries, and marked in the tables where it was not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.figures import Figures, summary
from harness.plan import FULL, LIGHT_RATE, LIGHT_TURNS, MOST_RATE, MOST_TURNS, QUICK
from harness.search import TRIES, Search, down, up

SPARE = 0.93


@dataclass
class Made:
    """A made-up server.

    Args:
        capacity: the highest level that it bears.
        light_us: CPU of an event at the light level, in microseconds.
        full_us: the same at its capacity; between them it changes evenly with the level.
        events: a second, of one level.
        hiccups: which of its runs fail for no reason of its own.
    """

    capacity: int
    light_us: float
    full_us: float
    events: float = 50.0
    hiccups: frozenset[int] = frozenset()
    tried: list[tuple[int, bool]] = field(default_factory=list)

    def run(self, level: int) -> tuple[bool, float]:
        """Return whether a level passed, and the share of the core that it took."""
        passed = level <= self.capacity and len(self.tried) not in self.hiccups
        self.tried.append((level, passed))
        return passed, self.used(level)

    def used(self, level: int) -> float:
        """Return the share of the core that a level takes."""
        way = min(level / self.capacity, 1.0)
        each_us = self.light_us * (1 - way) + self.full_us * way
        return min(1.0, level * self.events * each_us / 1e6)

    def search(self, first: int = LIGHT_TURNS, most: int = MOST_TURNS) -> tuple[int, int]:
        """Return the highest level that passed and the lowest that failed, 0 where there is none."""
        search = Search(first, most)
        while search.level is not None:
            passed, used = self.run(search.level)
            search.tell(passed=passed, idle=used < SPARE, used=used)
        passed_at = max((level for level, passed in self.tried if passed), default=0)
        return passed_at, min((level for level, _ in self.tried if level > passed_at), default=0)


@pytest.mark.parametrize(
    ("server", "most_tries"),
    [
        pytest.param(Made(390, 121, 51), 6, id="much cheaper when full"),
        pytest.param(Made(460, 95, 43), 6, id="twice as cheap when full"),
        pytest.param(Made(280, 70, 71), 4, id="the same at all levels"),
        pytest.param(Made(110, 172, 175), 4, id="just above the light level"),
        pytest.param(Made(1_090, 19, 18), 6, id="far above"),
        pytest.param(Made(900, 55, 22), 7, id="far above and cheaper"),
        pytest.param(Made(250, 30, 80), 6, id="dearer when full"),
        pytest.param(Made(240, 20, 20), 9, id="fails with CPU left"),
        pytest.param(Made(60, 300, 300), 5, id="below the light level"),
        pytest.param(Made(4, 4_500, 4_500), 9, id="far below"),
    ],
)
def test_a_level_is_found_within_a_step(server: Made, most_tries: int) -> None:
    """However its cost changes with the load."""
    passed, failed = server.search()
    assert passed <= server.capacity < failed <= up(passed)
    assert len(server.tried) <= most_tries, server.tried


@given(
    st.integers(1, MOST_TURNS),
    st.floats(1, 20_000),
    st.floats(0.4, 2.5),
    st.sampled_from([(LIGHT_TURNS, MOST_TURNS, 50.0), (LIGHT_RATE, MOST_RATE, 1000.0)]),
)
def test_a_search_ends(capacity: int, light_us: float, growth: float, shape: tuple[int, int, float]) -> None:
    """Within its tries, or a few more while all passes; with a bracket that holds what is right."""
    first, most, events = shape
    server = Made(capacity, light_us, light_us * growth, events)
    passed, failed = server.search(first, most)
    assert passed <= capacity
    assert not failed or capacity < failed
    assert len(server.tried) <= TRIES + 2
    if len(server.tried) < TRIES:
        assert passed == most or 0 < failed <= up(passed)


def test_who_passes_is_never_cut_short() -> None:
    """The share of a server that is always busy says nothing; it is followed up to where it fails, or to the most."""
    search = Search(1, 1_000_000)
    levels = []
    while search.level is not None:
        levels.append(search.level)
        search.tell(passed=True, idle=False, used=0.99)
    assert levels[-1] == 1_000_000
    assert len(levels) > TRIES


@pytest.mark.parametrize("run", range(4))
def test_one_hiccup_changes_nothing(run: int) -> None:
    """A level that failed with CPU left is tried once more, and only once."""
    server = Made(390, 121, 51, hiccups=frozenset({run}))
    passed, failed = server.search()
    assert failed <= up(passed)
    assert passed <= server.capacity
    if server.used(server.tried[run][0]) < SPARE:
        assert server.tried[run + 1] == (server.tried[run][0], True)
        assert passed > 390 / 1.2
    always = Made(240, 20, 20)
    always.search()
    failures = [level for level, passed in always.tried if not passed]
    assert all(failures.count(level) == 2 for level in failures)


@given(st.integers(1, 5_000))
def test_steps_are_a_fifth(level: int) -> None:
    """Or one, where that is more; and what is a step down is a step up again."""
    assert level < up(level) <= max(level + 1, level * 1.2)
    if level > 1:
        assert down(level) < level <= up(down(level))


def tokens_run(turns: int, *, passed: bool, **figures: float) -> dict[str, Any]:
    """Make up a run."""
    found = {"events_per_s": turns * 50.0, "cpu_us": 10.0, "p99_ms": 9.0, "server_cpu": 0.9, "load_cpu": 0.3}
    return {
        "workload": "tokens",
        "server": "x",
        "turns": turns,
        "passed": passed,
        "errors": 0,
        **found,
        **figures,
    }


@pytest.mark.parametrize(
    ("runs", "mark"),
    [
        ([tokens_run(100, passed=True), tokens_run(120, passed=False)], ""),
        ([tokens_run(100, passed=True)], "*"),
        ([tokens_run(100, passed=True), tokens_run(144, passed=False)], "*"),
        ([tokens_run(84, passed=False)], "*"),
        ([tokens_run(1, passed=False)], ""),
        ([tokens_run(100, passed=True), tokens_run(120, passed=False, server_cpu=0.5, load_cpu=0.99)], "+"),
        ([tokens_run(100, passed=False), tokens_run(100, passed=True), tokens_run(120, passed=False)], ""),
    ],
)
def test_what_was_not_searched_to_the_end_is_marked(runs: list[dict[str, Any]], mark: str) -> None:
    """In the tables, which are made of the runs alone."""
    data = {"servers": [{"name": "x", "title": "X"}], "runs": runs, "missing": {}, "left_out": []}
    assert Figures(data).mark("tokens", "x") == mark
    if passed := [run for run in runs if run["passed"]]:
        assert f"{passed[0]['events_per_s']:,.0f}{mark} " in summary(data)


@pytest.mark.parametrize(("plan", "minutes"), [(FULL, 18.0), (QUICK, 1.75)])
def test_plans_have_time_for_all_they_name(plan: Any, minutes: float) -> None:
    """By what each step takes, with something over."""
    planned_s = sum(step.seconds(len(plan.servers)) for step in plan.steps)
    assert plan.minutes == minutes
    assert planned_s < plan.minutes * 60 * 0.95
