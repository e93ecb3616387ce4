"""The report: what it says follows from the numbers, and whatever comes from outside stays text."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from penstock.bench.report import render, write_report
from penstock.bench.result import Distribution, Expectation, Moment, Result, Server
from penstock.bench.words import NBSP, about, headline, memory, milliseconds, warnings

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'& \0\x1b\ud800\u202e"
VOID = {"meta", "img", "br", "input", "link"}


def spread(p50: float, p99: float, count: int = 500) -> Distribution:
    curve = [(0.0, p50 / 2), (50.0, p50), (90.0, (p50 + p99) / 2), (99.0, p99), (100.0, p99 * 2)]
    return Distribution(count, p50 / 2, p50, p50, (p50 + p99) / 2, p99, p99 * 1.5, p99 * 2, curve)


def ran(**changes: Any) -> Result:
    result = Result(
        scenario="tokens",
        transport="AI SDK POST",
        url="http://127.0.0.1:8000/api/chat",
        started_at="2025-11-21T05:34:10Z",
        duration_s=60.0,
        partial=False,
        options={"connections": 500, "rate": 50, "clock": "stamps"},
        machine={"system": "Linux", "cores": 2, "penstock": "0.1.0"},
        started=500,
        opened=500,
        finished=500,
        events=1_499_880,
        bytes=111_000_000,
        errors={},
        times={"latency": spread(6.1, 23.0), "first_token": spread(24, 49), "turn": spread(9_980, 10_040)},
        timeline=[
            Moment(float(at), 500, 25_000, 1_850_000, 0, 22.0 if at > 1 else None) for at in range(1, 61)
        ],
        load_cpu=0.41,
    )
    return msgspec.structs.replace(result, **changes)


class Page(HTMLParser):
    """What a browser would make of it: tags, texts by tag, and whether they nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)


def plots(html: str) -> list[str]:
    """The titles of the plots; each is there for wide and for narrow screens."""
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    titles = [svg[0].text or "" for svg in drawn]
    assert titles[::2] == titles[1::2]
    return titles[::2]


def plain(text: str) -> str:
    return text.replace(NBSP, " ")


def test_the_headline_is_the_run_in_a_sentence() -> None:
    assert (
        plain(headline(ran()))
        == "500 connections, 25,000 events a second: 99 % arrived within 23.0 ms, no errors."
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"errors": {"cut": 1}}, "500 connections, 25,000 events a second: 99 % arrived within 23.0 ms, 1 error."),
        (
            {"opened": 0, "events": 0, "errors": {"refused": 500}, "times": {}},
            "None of 500 connections could be opened: 500 errors.",
        ),
        (
            {"scenario": "idle", "events": 0, "times": {}, "server": Server(1, 2.0, None, 1, 2, 11.92)},
            "500 connections, held for 60 s: 11.9 kB of the server's memory each, no errors.",
        ),
        (
            {"scenario": "churn", "opened": 12_600, "times": {"turn": spread(180, 240)}},
            "210 new connections a second, 25,000 events a second: 99 % of turns were whole within 240 ms, no errors.",
        ),
        ({"started": 0, "opened": 0}, "No connection was begun."),
        ({"duration_s": 0.0, "times": {}, "events": 0}, "500 connections, held for 0 s: no errors."),
        ({"timeline": [], "opened": 1, "times": {}}, "1 connection, 25,000 events a second: no errors."),
    ],
)  # fmt: skip
def test_other_runs_have_other_headlines(changes: dict[str, Any], said: str) -> None:
    assert plain(headline(ran(**changes))) == said


def test_a_good_run_has_no_warnings_and_the_others_say_what_is_wrong() -> None:
    assert warnings(ran()) == []
    bad = ran(
        partial=True,
        duration_s=12.3,
        load_cpu=0.97,
        options={"clock": "pace"},
        opened=460,
        errors={"refused": 40, "cut": 3, "x": 2, "y": 1, "none": 0},
    )
    said = plain("\n".join(warnings(bad)))
    assert "ended early: these are the figures of its first 12.3 s" in said
    assert "The load tool itself was the bottleneck: one of its processes used 97 % of a core" in said
    assert "measured by pace, not by stamps" in said
    assert "40 of 500 connections did not open" in said
    assert "46 errors: refused (40), cut (3), x (2) and others" in said
    page = render(bad)
    assert all(line.replace("'", "&#x27;") in plain(page) for line in said.splitlines())


def test_expectations_are_shown_with_what_was_found() -> None:
    wanted = [
        Expectation("p99<100ms", 23.0, True),
        Expectation("turn.p99<9s", 10_040.0, False),
        Expectation("errors==0", 0.0, True),
        Expectation("resume<1s", None, False),
    ]
    page = plain(" ".join(Page(render(ran(expectations=wanted))).text))
    assert "✓ held   p99<100ms   found 23.0 ms" in page
    assert "✗ not held   turn.p99<9s   found 10.04 s" in page
    assert "✓ held   errors==0   found 0" in page
    assert "resume<1s   found not measured" in page


def test_there_is_a_plot_and_a_table_of_everything_that_was_measured() -> None:
    html = render(ran(errors={"cut": 3}, server=Server(7, 36.0, 24.0, 48_212, 61_004, 25.6)))
    assert plots(html) == [
        "How long things took",
        "Throughput",
        "Latency, 99th percentile",
        "Open connections",
        "Until an answer begins",
        "Errors by kind",
        "Server's memory",
    ]
    page = Page(html)
    assert page.tags.count("table") == 6
    assert {"Latency", "First token", "Turn"} <= set(page.text)
    assert "Resume" not in page.text


def test_the_page_is_one_file_that_may_load_and_run_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_report(ran(), file)
    html = file.read_text("utf-8")
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form", "a"} & set(page.tags)
    assert not {"style", "src", "href"} & {name for name, _ in page.attributes}
    # A namespace's name and the server's URL are the only addresses, and neither is asked for.
    assert set(re.findall(r"https?://[^\"<\s]+", html)) == {"http://www.w3.org/2000/svg", ran().url}
    assert "url(" not in html
    assert "@import" not in html
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert ("content", policy) in page.attributes
    assert html.index("content-security-policy") < html.index("<style>")


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    result = ran(
        scenario=HOSTILE,
        transport=HOSTILE,
        url=HOSTILE,
        started_at=HOSTILE,
        options={HOSTILE: HOSTILE},
        machine={HOSTILE: HOSTILE, "penstock": HOSTILE},
        errors={HOSTILE: 3},
        times={HOSTILE: spread(1, 2), "latency": spread(1, 2)},
        expectations=[Expectation(HOSTILE, 1.0, False)],
    )
    write_report(result, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text("utf-8")
    assert not {"script", "img"} & set(Page(html).tags)
    assert not [name for name, _ in Page(html).attributes if name.startswith("on")]
    assert not set("\0\x1b\u202e") & set(html)
    assert "Errors by kind" in plots(html)


@pytest.mark.parametrize(
    "url", ["http://ada:secret@host/x", "wss://secret@host:1/x", "http://a:secret@b@host"]
)
def test_a_password_in_the_url_is_not_passed_on(url: str) -> None:
    html = render(ran(url=url))
    assert "secret" not in html
    assert "://host" in html


NAN = math.nan
NOTHING = Distribution(0, NAN, NAN, NAN, NAN, NAN, NAN, NAN, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"times": {}, "timeline": [], "events": 0, "bytes": 0},
        {"times": {"latency": NOTHING, "gap": NOTHING}},
        {"times": {"latency": msgspec.structs.replace(spread(1, 2), curve=[], min=NAN, max=math.inf)}},
        {"times": {"latency": Distribution(1, 5, 5, 5, 5, 5, 5, 5, [(100.0, 5.0)])}},
        {"times": {"latency": Distribution(9, 0, 0, 0, 0, 0, 0, 0, [(0.0, 0.0), (100.0, 0.0)])}},
        {"times": {"connect": spread(1e-9, 1e-6), "turn": spread(1e6, 1e12)}},
        {"timeline": [Moment(1.0, 0, 0, 0, 0, None)]},
        {"timeline": [Moment(1.0, 3, 2, 1, 0, 7.5)]},
        {"timeline": [Moment(float(at), 0, 0, 0, 0, NAN) for at in range(5)]},
        {"timeline": [Moment(float(at), at, at * 10**9, 10**15, at, float(at)) for at in range(7_200)]},
        {"duration_s": 0.0},
        {"duration_s": NAN, "load_cpu": NAN, "server": Server(1, NAN, NAN, 0, 0, NAN)},
        {"options": {}, "machine": {}},
        {"started": 0, "opened": 0, "finished": 0},
        {"errors": {f"kind {n}": n for n in range(500)}},
        {"started_at": "", "url": ""},
    ],
    ids=str,
)  # fmt: skip
def test_no_result_makes_it_fail(changes: dict[str, Any]) -> None:
    html = render(ran(**changes))
    Page(html)
    plots(html)
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))


def test_a_long_run_is_drawn_over_minutes_and_told_in_few_rows() -> None:
    timeline = [Moment(float(at), 500, 25_000, 1, 0, 99.0 if at == 4_000 else 20.0) for at in range(1, 7_201)]
    html = render(ran(timeline=timeline, duration_s=7_200.0))
    assert len(html) < 300_000
    assert "minutes since the run began" in html
    assert "of the worst second in 24" in html
    assert "Each row is of 60 seconds" in html
    # The one bad second is neither thinned nor averaged away.
    assert "From 20 to 99" in html
    assert f"<td>99.0{NBSP}ms</td>" in html


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (about(24_987), "25,000"),
        (about(0.0123), "0.0123"),
        (about(0), "0"),
        (about(NAN), "unknown"),
        (milliseconds(0.4211), "0.42 ms"),
        (milliseconds(23.44), "23.4 ms"),
        (milliseconds(1_204.4), "1,204 ms"),
        (milliseconds(12_340), "12.34 s"),
        (milliseconds(None), "not measured"),
        (memory(12.44), "12.4 kB"),
        (memory(61_004), "61 MB"),
        (memory(2_500_000), "2.5 GB"),
    ],
)
def test_numbers_are_written_as_they_are_said(written: str, expected: str) -> None:
    assert plain(written) == expected
