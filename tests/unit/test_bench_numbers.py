"""From what was measured to what is said: histograms, expectations, recipes."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from array import array
from pathlib import Path

import click
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import penstock
from penstock.bench.expect import parse_expect
from penstock.bench.limits import BENCH
from penstock.bench.plan import Address, Report, Segment
from penstock.bench.recipe import SCENARIOS, Scenario, make_recipe, read_recipe
from penstock.bench.result import Distribution, Result, Server
from penstock.bench.scenarios import TRANSPORTS, Compiler
from penstock.bench.summary import Summary
from penstock.bench.table import notes_on
from penstock.bench.times import Times, exact_p99
from penstock.cli.main import bench

RECIPES = Path(penstock.__file__).parents[2] / "benchmarks" / "scenarios"
ADDRESS = Address(family=2, sockaddr=("127.0.0.1", 1), host="x", authority="x:1", tls=False)
NANOSECONDS = st.lists(st.integers(0, 100_000_000_000), min_size=1, max_size=300)


def times_of(*samples: list[int]) -> Times:
    """Add some arrays."""
    times = Times()
    for values in samples:
        times.add(array("q", values).tobytes())
    return times


@given(NANOSECONDS, NANOSECONDS)
def test_merged_histograms_are_as_one(first: list[int], second: list[int]) -> None:
    """Two processes that measured the halves say what one says that measured all."""
    assert times_of(first, second).distribution() == times_of(first + second).distribution()


@given(NANOSECONDS)
def test_percentiles_are_near_the_exact_ones(values: list[int]) -> None:
    """Within three digits and a microsecond; the edges and the mean are exact."""
    found = times_of(values).distribution()
    assert (found.min, found.max) == (min(values) / 1e6, max(values) / 1e6)
    assert found.mean == pytest.approx(statistics.fmean(values) / 1e6)
    # HDR counts up to the next whole value.
    for percent in (50, 90, 99):
        place = max(0, -(-len(values) * percent // 100) - 1)
        near = sorted(values)[max(0, place - 1) : place + 2]
        value_ns = getattr(found, f"p{percent}") * 1e6
        assert min(near) * 0.998 - 2_000 <= value_ns <= max(near) * 1.002 + 2_000
    assert [value for _, value in found.curve] == sorted(value for _, value in found.curve)
    assert found.curve[-1] == (100.0, found.max)


def test_nothing_and_less_than_nothing() -> None:
    """Zeros count, and clocks that differ a little make no negative times."""
    times = times_of([-5_000, 4_000_000])
    times.add_zeros(2)
    times.add(b"")
    found = times.distribution()
    assert (found.count, found.min, found.p50, found.max) == (4, 0.0, 0.0, 4.0)
    assert exact_p99(b"") is None
    assert exact_p99(array("q", range(0, 200_000_000, 1_000_000)).tobytes()) == 198.0


def flat(value: float) -> Distribution:
    """A distribution of one value."""
    return Distribution(1, value, value, value, value, value, value, value, [(100.0, value)])


RESULT = Result(
    scenario="tokens",
    transport="post",
    url="http://x",
    started_at="",
    duration_s=2.0,
    partial=False,
    options={},
    machine={},
    started=1,
    opened=1,
    finished=7,
    events=500,
    bytes=1,
    errors={"reset": 1, "cut": 2},
    times={"latency": flat(80.0), "first_token": flat(1_500.0)},
    timeline=[],
    load_cpu=0.1,
    server=Server(1, 0.1, 20.0, 1, 2, 24.0),
)


@pytest.mark.parametrize(
    ("text", "found", "held"),
    [
        ("p99<100ms", 80.0, True),
        ("P99 < 0.08 s", 80.0, False),
        ("p99<=80000us", 80.0, True),
        ("max=80ms", 80.0, True),
        ("mean>1e2ms", 80.0, False),
        ("first_token.p50 >= 1.5s", 1500.0, True),
        ("turn.p99<9s", None, False),
        ("errors=0", 3.0, False),
        ("errors<=3", 3.0, True),
        ("finished=7", 7.0, True),
        ("events/s>=250", 250.0, True),
        ("kb/connection<24kB", 24.0, False),
        ("cpu/event<20.1us", 20.0, True),
        ("cpu/event<20.1", 20.0, True),
    ],
)
def test_expectations_are_judged(text: str, found: float | None, held: bool) -> None:
    """What was not measured did not hold."""
    judged = parse_expect(text).judge(RESULT)
    assert (judged.text, judged.found, judged.held) == (text, found, held)


def test_a_bare_percentile_is_of_what_the_scenario_is_about() -> None:
    """Of a churn it is the turn, where that was measured."""
    churn = msgspec.structs.replace(RESULT, scenario="churn", times={"turn": flat(5.0), "latency": flat(1.0)})
    assert parse_expect("p99<1s").judge(churn).found == 5.0
    assert parse_expect("latency.p99<1s").judge(churn).found == 1.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no expectation"),
        ("p99", "no expectation"),
        ("p99<", "no expectation"),
        ("p99<100", "say ms, s or us"),
        ("p99<5kb", "say ms, s or us"),
        ("p95<5ms", "and no p95"),
        ("speed.p99<5ms", "the times are latency"),
        ("errors<5ms", "errors has no unit"),
        ("x.errors=0", "errors has no unit"),
        ("kb/connection<5ms", "is in kb"),
        ("p99<5ms; rm", "no expectation"),
    ],
)
def test_what_is_no_expectation_is_refused(text: str, sentence: str) -> None:
    """With a sentence."""
    with pytest.raises(ValueError, match=sentence):
        parse_expect(text)


@given(st.text(max_size=30))
@example("p99<\u0661ms")
def test_any_text_is_read_or_refused(text: str) -> None:
    """Never worse than with a ValueError."""
    with contextlib.suppress(ValueError):
        parse_expect(text).judge(RESULT)


@given(
    st.sampled_from(["latency.", "gap.", ""]),
    st.sampled_from(["p50", "p90", "p99", "p999", "max", "mean"]),
    st.sampled_from(["<", "<=", ">", ">=", "="]),
    st.floats(0, 1e6).map(lambda number: f"{number:.3f}"),
    st.sampled_from(["ms", "s", "us"]),
    st.sampled_from(["", " "]),
)
def test_all_that_should_be_read_is(
    time: str, what: str, how: str, number: str, unit: str, space: str
) -> None:
    """With blanks or without."""
    expect = parse_expect(f"{space}{time}{what}{space}{how}{space}{number}{space}{unit}{space}")
    factor = {"ms": 1.0, "s": 1e3, "us": 1e-3}[unit]
    assert (expect.time, expect.what, expect.how) == (time.rstrip("."), what, how)
    assert expect.number == pytest.approx(float(number) * factor)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_recipes_are_sound(file: Path) -> None:
    """Each can be compiled, its expectations are read, and it ends within two minutes."""
    recipe = make_recipe(read_recipe(file), {})
    plan = Compiler(recipe, ADDRESS, "/api/chat", BENCH).plan()
    assert plan.measure_from_s + plan.measure_s + plan.drain_s + plan.stop_s < 120
    assert [parse_expect(text) for text in recipe.expect]


def test_each_scenario_has_its_recipe_and_can_be_typed() -> None:
    """Under its name."""
    assert {file.stem for file in RECIPES.glob("*.toml")} >= set(SCENARIOS)
    option = next(parameter for parameter in bench.params if parameter.name == "scenario")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenarios_are_bounded_by_default(scenario: Scenario) -> None:
    """Some hundred connections, and an end within about a minute."""
    recipe = make_recipe({}, {"scenario": scenario})
    plan = Compiler(recipe, ADDRESS, "", BENCH).plan()
    assert plan.measure_from_s + plan.measure_s + plan.drain_s + plan.stop_s < 70
    assert sum(group.connections for group in plan.groups) <= 500


@pytest.mark.parametrize(
    ("scenario", "transport"),
    [
        pair
        for pair in itertools.product(SCENARIOS, ("post", "eventsource", "websocket"))
        if pair[1] not in TRANSPORTS[pair[0]]
    ],
)
def test_what_makes_no_sense_is_refused(scenario: Scenario, transport: str) -> None:
    """With its reason."""
    recipe = make_recipe({}, {"scenario": scenario, "transport": transport})
    with pytest.raises(ValueError, match=f"{scenario} makes no sense with {transport}: "):
        Compiler(recipe, ADDRESS, "", BENCH)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scenario": "storm"}, "there is no scenario storm; there are tokens"),
        ({"connections": 0}, "connections must be 1 to 20000, not 0"),
        ({"connections": "many"}, r"Expected `int`, got `str` - at `\$.connections`"),
        ({"rate": 0}, "rate must be"),
        ({"duration_s": 1e9}, "duration_s must be 0.1 to 600"),
        ({"scenario": "churn", "rate": 90_000.0}, "a churn of more than 200,000"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"headers": {"x": "a\r\nb: c"}}, "the header 'x' can't be sent"),
        ({"path": "/a b"}, "path has a character"),
        ({"expect": "p99"}, "Expected `array`"),
    ],
)
def test_what_does_not_fit_is_said(fields: dict[str, object], sentence: str) -> None:
    """In one sentence."""
    with pytest.raises(ValueError, match=sentence):
        make_recipe(fields, {})


def test_what_is_typed_wins(tmp_path: Path) -> None:
    """Over the file, and that over the scenario."""
    file = tmp_path / "x.toml"
    file.write_text('scenario = "fanout"\nrate = 7\nramp_s = 9')
    recipe = make_recipe(read_recipe(file), {"rate": 8.0})
    assert (recipe.scenario, recipe.rate, recipe.ramp_s, recipe.connections) == ("fanout", 8.0, 9.0, 200)
    file.write_text("rate =")
    with pytest.raises(ValueError, match="is no TOML"):
        read_recipe(file)
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read_recipe(tmp_path / "nothing.toml")


def test_what_must_be_known_first_is_said() -> None:
    """Where the load was the bottleneck, above all."""
    sure = msgspec.structs.replace(RESULT, options={"clock": "stamps"})
    assert notes_on(sure, BENCH) == []
    unsure = msgspec.structs.replace(RESULT, options={"clock": "pace"}, load_cpu=0.95, partial=True)
    load, partial, clock = notes_on(unsure, BENCH)
    assert load.startswith("The load was the bottleneck: one of its processes used 95% of a core")
    assert "ended early" in partial
    assert "do not say when they were due" in clock


def segment(from_s: float, to_s: float, *, measured: bool, latency_ms: list[int]) -> Segment:
    """Make one."""
    return Segment(
        from_s=from_s,
        to_s=to_s,
        measured=measured,
        open=2,
        events=len(latency_ms),
        received=10,
        errors=1,
        keepalives=0,
        together=0,
        cpu_s=0.25,
        samples={"latency": array("q", [value * 1_000_000 for value in latency_ms]).tobytes()},
    )


def test_reports_are_added_up() -> None:
    """Only what is measured counts for the latency; the timeline has all."""
    report = Report(
        started=3,
        opened=2,
        finished=1,
        errors={"reset": 1},
        segments=[
            segment(0, 1, measured=False, latency_ms=[900]),
            segment(1, 1.5, measured=True, latency_ms=[1, 2]),
            segment(1.5, 2, measured=True, latency_ms=[3]),
        ],
        stamped=True,
        counts={"held": 1},
        overfull=False,
    )
    summary = Summary([report, report])
    assert (summary.started, summary.opened, summary.finished) == (6, 4, 2)
    assert (summary.errors["reset"], summary.counts["held"]) == (2, 2)
    assert (summary.events, summary.duration_s, summary.load_cpu) == (6, 1.0, 0.5)
    latency = summary.times()["latency"]
    assert (latency.count, latency.min, latency.max) == (6, 1.0, 3.0)
    first, second = summary.timeline()
    assert (first.at_s, first.open, first.events, first.errors, first.p99) == (1.0, 4, 2, 2, 900.0)
    assert (second.at_s, second.open, second.events, second.errors, second.p99) == (2.0, 4, 6, 4, 3.0)
