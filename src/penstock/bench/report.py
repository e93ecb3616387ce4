"""A load test as one page that can be sent on: the outcome in a sentence, then the figures, then what they mean.

URLs and kinds of errors come from outside, and are text here whatever they hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from penstock.bench import page
from penstock.bench.plot import Bar, Line, escape
from penstock.bench.result import Expectation, Moment, Result, Server
from penstock.bench.scale import Axis
from penstock.bench.words import (
    MICROSECONDS,
    NBSP,
    TIMES,
    about,
    count,
    failed,
    headline,
    kinds_of_errors,
    main_time,
    measured,
    memory,
    milliseconds,
    peak_open,
    percent,
    rate,
    seconds,
    warnings,
    without_password,
)

_LOG_FROM = 20
"""From this ratio of the slowest to the fastest time, both at the middle, a linear axis would flatten the fast one."""
_MINUTES_FROM_S = 900
"""Runs from this long are drawn over minutes."""
_POINTS = 300
"""Moments that are drawn: more would be a band, not a line."""
_ROWS = 120
"""As many as a table over the run may have and still be read."""
_BARS = 12
"""Kinds of errors that are drawn; the table has all of them."""

_PLOT_COLOURS = {name: colour for colour, name in enumerate(TIMES)}


def write_report(result: Result, file: Path) -> None:
    """Write the page of a result into a file.

    Raises:
        OSError: the file can't be written.
    """
    file.write_text(render(result), encoding="utf-8")


def render(result: Result) -> str:
    """Return the page of a result: one HTML document."""
    sentence = headline(result)
    return page.document(sentence, "\n".join(part for part in _parts(result, sentence) if part))


def _parts(result: Result, sentence: str) -> Iterator[str]:
    where = f"{escape(without_password(result.url))} · {escape(result.transport)}"
    yield (
        f'<header><p class="kicker">penstock bench · {escape(result.scenario)}</p><h1>{escape(sentence)}</h1>'
        f'<p class="about">{where} · {escape(_moment(result.started_at))} · {seconds(result.duration_s)} measured</p>'
        "</header>"
    )
    if said := warnings(result):
        items = "".join(f"<li>{escape(each)}</li>" for each in said)
        yield f'<ul class="notes" aria-label="What to know about these figures">{items}</ul>'
    yield _verdict(result.expectations)
    yield _figures(result)
    yield _times(result)
    yield _run(result)
    yield _errors(result)
    if result.server is not None:
        yield _server(result.server, result)
    yield _conditions(result)
    yield _glossary(result)
    version = result.machine.get("penstock")
    yield f"<footer>Made by penstock bench{'' if version is None else f' {escape(str(version))}'}.</footer>"


def _verdict(expectations: Sequence[Expectation]) -> str:
    if not expectations:
        return ""
    items = []
    for each in expectations:
        if each.found is None or re.search(r"\d\s*m?s\s*$", each.text):
            found = milliseconds(each.found)  # A time is found in milliseconds, whatever unit was typed.
        else:
            found = about(each.found)
        kind, mark = ("held", "✓ held") if each.held else ("broken", "✗ not held")
        items.append(
            f'<li class="{kind}"><b>{mark}</b> <code>{escape(each.text)}</code> <span class="note">found {found}</span></li>'
        )
    return f'<ul class="verdict" aria-label="Expectations">{"".join(items)}</ul>'


def _figures(result: Result) -> str:
    """The numbers that a reader remembers."""
    shown: list[tuple[str, str, str]] = [
        (
            "Connections",
            count(peak_open(result) or result.opened),
            f"open at once; {count(result.opened)} opened of {count(result.started)}",
        ),
        (
            "Events a second",
            about(rate(result.events, result.duration_s)),
            f"{count(result.events)} events, {memory(result.bytes / 1000)}",
        ),
    ]
    times = measured(result)
    chosen = dict.fromkeys(
        each for each in (main_time(result), "first_token", "gap", "first_byte") if each in times
    )
    for name in list(chosen)[:2]:
        each = times[name]
        shown.append(
            (
                f"{_called(name)}, 99{NBSP}%",
                milliseconds(each.p99),
                f"half within {milliseconds(each.p50)}, longest {milliseconds(each.max)}",
            )
        )
    kinds = kinds_of_errors(result)
    shown.append(
        ("Errors", count(failed(result)), f"mostly {kinds[0][0][:40]}" if kinds else "none of any kind")
    )
    shown.append(("Finished", count(result.finished), "saw the proper end of their stream"))
    if (server := result.server) is not None:
        shown.append(
            (
                "Server's CPU",
                percent(rate(server.cpu_s, result.duration_s)),
                "of one core"
                if server.cpu_us_per_event is None
                else f"of one core; {about(server.cpu_us_per_event)}{NBSP}{MICROSECONDS} an event",
            )
        )
        shown.append(("Server's memory", memory(server.kb_per_connection), "for each connection"))
    else:
        shown.append(("Load tool", percent(result.load_cpu), "of a core, its busiest process"))
        shown.append(("Measured", seconds(result.duration_s), "without ramp and warm-up"))
    items = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd><dd class="note">{escape(note)}</dd></div>'
        for name, value, note in shown
    )
    return f'<dl class="figures">{items}</dl>'


def _times(result: Result) -> str:
    times = measured(result)
    if not times:
        return ""
    rows = [
        [_called(name), count(each.count)]
        + [
            milliseconds(time)
            for time in (each.min, each.mean, each.p50, each.p90, each.p99, each.p999, each.max)
        ]
        for name, each in times.items()
    ]
    head = ["", "Measured", "Least", "Mean", "50 %", "90 %", "99 %", "99.9 %", "Most"]
    table = page.table("The same as numbers: so many per cent were at most this long", head, rows)
    plot = _percentiles(result, "How long things took", list(times), page.WIDE)
    return f'<section><h2>Times</h2>{plot}<div class="below">{table}</div></section>'


def _percentiles(result: Result, title: str, names: Sequence[str], size: tuple[int, int]) -> str:
    times = measured(result)
    lines = [Line(_called(name), times[name].curve, _PLOT_COLOURS.get(name, 0)) for name in names]
    middles = [times[name].p50 for name in names]
    log = min(middles) > 0 and max(middles) / min(middles) > _LOG_FROM
    said = "; ".join(
        f"{_called(name)}: half within {milliseconds(times[name].p50)}, 99 % within {milliseconds(times[name].p99)}"
        for name in names
    )
    x = Axis("percentile", "%", "percentile")
    y = Axis("milliseconds", "ms", "log" if log else "linear")
    return page.lines(title, f"Percentiles. {said}.", lines, x, y, size)


def _run(result: Result) -> str:
    """What changed while it ran, and how answers began."""
    plots = list(_over_time(result))
    firsts = [name for name in ("first_byte", "first_token") if name in measured(result)]
    if firsts:
        plots.append(_percentiles(result, "Until an answer begins", firsts, page.HALF))
    if not plots:
        return ""
    return (
        f'<section><h2>The run</h2><div class="plots">{"".join(plots)}</div>{_as_numbers(result)}</section>'
    )


def _over_time(result: Result) -> Iterator[str]:
    each, moments = _merged(result.timeline, _POINTS)
    if not moments:
        return
    long = moments[-1].at_s >= _MINUTES_FROM_S
    x = Axis("minutes since the run began", "min") if long else Axis("seconds since the run began", "s")
    at = [moment.at_s / (60 if long else 1) for moment in moments]
    called = _called("latency" if "latency" in measured(result) else "gap")
    of_each = "of each second" if each == 1 else f"of the worst second in {each}"
    for title, y, colour, numbers in (
        ("Throughput", Axis("events a second"), 0, [moment.events / each for moment in moments]),
        (
            f"{called}, 99th percentile",
            Axis(f"milliseconds, {of_each}", "ms"),
            0,
            [moment.p99 for moment in moments],
        ),
        ("Open connections", Axis("connections"), 6, [moment.open for moment in moments]),
    ):
        known = [number for number in numbers if number is not None and math.isfinite(number)]
        said = f"From {about(min(known))} to {about(max(known))}" if known else "Nothing was measured"
        line = Line(title, list(zip(at, numbers, strict=True)), colour)
        yield page.lines(title, f"{y.label}, over time. {said}.", [line], x, y, page.HALF)


def _merged(timeline: Sequence[Moment], most: int) -> tuple[int, list[Moment]]:
    """Return at most so many moments, and of how many seconds each is: a long run's seconds can't all be told apart."""
    each = max(math.ceil(len(timeline) / most), 1)
    parts = [timeline[first : first + each] for first in range(0, len(timeline), each)]
    return each, [
        Moment(
            at_s=part[-1].at_s,
            open=part[-1].open,
            events=sum(moment.events for moment in part),
            bytes=sum(moment.bytes for moment in part),
            errors=sum(moment.errors for moment in part),
            p99=max((moment.p99 for moment in part if moment.p99 is not None), default=None),
        )
        for part in parts
    ]


def _as_numbers(result: Result) -> str:
    """The plots over time as a table."""
    each, moments = _merged(result.timeline, _ROWS)
    if not moments:
        return ""
    rows = [
        [
            seconds(moment.at_s),
            count(moment.open),
            count(moment.events),
            memory(moment.bytes / 1000),
            count(moment.errors),
            "" if moment.p99 is None else milliseconds(moment.p99),
        ]
        for moment in moments
    ]
    caption = (
        "Second by second" if each == 1 else f"Each row is of {each} seconds; its 99 % is that of the worst"
    )
    table = page.table(caption, ["At", "Open", "Events", "Bytes", "Errors", "99 %"], rows)
    return f'<details class="below"><summary>The run as numbers</summary>{table}</details>'


def _errors(result: Result) -> str:
    kinds = kinds_of_errors(result)
    if not kinds:
        return ""
    bars = [Bar(kind, number, count(number)) for kind, number in kinds[:_BARS]]
    plot = page.bars("Errors by kind", "errors", bars)
    table = page.table(
        "The same as numbers", ["Kind", "Errors"], [[kind, count(number)] for kind, number in kinds]
    )
    return f'<section><h2>Errors</h2><div class="two">{plot}{table}</div></section>'


def _server(server: Server, result: Result) -> str:
    rows = [
        ("Process", str(server.pid)),
        ("CPU", f"{seconds(server.cpu_s)}, {percent(rate(server.cpu_s, result.duration_s))} of one core"),
    ]
    if server.cpu_us_per_event is not None:
        rows.append(("CPU for each event", f"{about(server.cpu_us_per_event)}{NBSP}{MICROSECONDS}"))
    rows.append(("Memory before and after", f"{memory(server.rss_before_kb)}, {memory(server.rss_after_kb)}"))
    rows.append(("Memory for each connection", memory(server.kb_per_connection)))
    bars = [
        Bar("before", server.rss_before_kb, memory(server.rss_before_kb), strong=False),
        Bar("after", server.rss_after_kb, memory(server.rss_after_kb)),
    ]
    plot = page.bars("Server's memory", "resident", bars)
    return f'<section><h2>Server</h2><div class="two">{page.pairs("What its operating system says", rows)}{plot}</div></section>'


def _conditions(result: Result) -> str:
    options = [(name, str(value)) for name, value in result.options.items()]
    machine = [(name, str(value)) for name, value in result.machine.items()]
    machine.append(("busiest load process", f"{percent(result.load_cpu)} of a core"))
    tables = page.pairs("Options", options) if options else ""
    tables += page.pairs("Machine that made the load", machine)
    return f'<section><h2>How it was measured</h2><div class="two">{tables}</div></section>'


def _glossary(result: Result) -> str:
    terms = [TIMES[name] for name in measured(result) if name in TIMES]
    if not terms:
        return ""
    terms.append(
        ("99 %", "The time within which 99 of 100 were done; the hundredth took longer, up to “most”.")
    )
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in terms)
    return f'<section><h2>What the words mean</h2><dl class="words">{items}</dl></section>'


def _called(name: str) -> str:
    return TIMES[name][0] if name in TIMES else name.replace("_", " ").capitalize()


def _moment(started_at: str) -> str:
    """`2025-11-21T05:34:10Z` as a person writes it; anything else as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|\+00:00)", started_at)
    return f"{found[1]}, {found[2]} UTC" if found else started_at
