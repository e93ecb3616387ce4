"""The report of a load test, as a person sees it who opened it from a mail."""

from __future__ import annotations

from pathlib import Path

from test_page import run_page

from penstock.bench.report import write_report
from penstock.bench.result import Distribution, Moment, Result


async def test_a_report_opens_from_its_file_and_asks_for_nothing(chromium: str, tmp_path: Path) -> None:
    hostile = "<img src=http://127.0.0.1:9/x onerror=alert(1)>"
    curve = [(0.0, 1.0), (50.0, 6.0), (99.0, 23.0), (100.0, 60.0)]
    time = Distribution(500, 1.0, 7.0, 6.0, 12.0, 23.0, 50.0, 60.0, curve)
    result = Result(
        scenario="tokens",
        transport="AI SDK POST",
        url=f"http://127.0.0.1:8000/{hostile}",
        started_at="2025-11-21T05:34:10Z",
        duration_s=60.0,
        partial=True,
        options={"rate": 50},
        machine={"cores": 2},
        started=500,
        opened=497,
        finished=497,
        events=1_500_000,
        bytes=111_000_000,
        errors={hostile: 3},
        times={"latency": time, "first_byte": time, "first_token": time},
        timeline=[Moment(float(at), 500, 25_000, 1_850_000, 0, 22.0) for at in range(60)],
        load_cpu=0.95,
    )
    file = tmp_path / "report.html"
    write_report(result, file)
    seen = await run_page("report.mjs", file.as_uri(), chromium)
    assert seen["problems"] == []
    assert set(seen["requests"]) == {file.as_uri()}
    for view in seen["views"].values():
        assert view["plots"] == [
            "How long things took",
            "Throughput",
            "Latency, 99th percentile",
            "Open connections",
            "Until an answer begins",
            "Errors by kind",
        ]
        assert view["lines"] == [3, 1, 1, 1, 2, 1]
        assert view["overflow"] <= 0
    # That the policy lets its own style sheet through shows in the colours.
    assert seen["views"]["light 1200"]["ground"] == "rgb(255, 255, 255)"
    assert seen["views"]["dark 1200"]["ground"] == "rgb(15, 19, 23)"
    assert seen["views"]["light 390"]["color"] != seen["views"]["dark 390"]["color"] != "none"
