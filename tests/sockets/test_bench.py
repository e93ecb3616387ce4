"""`penstock bench` against our own server: each scenario, small, and what it says of it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner
from quart import websocket
from quart_trio import QuartTrio

from penstock.bench.limits import BENCH
from penstock.bench.recipe import make_recipe
from penstock.bench.result import Result
from penstock.bench.run import Run
from penstock.bench.server_process import usage
from penstock.cli import main
from penstock.testing import open_server

LIMITS = msgspec.structs.replace(BENCH, drain_s=1.0, stop_s=1.0)


class Served:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self.url = f"{found[1]}/api/chat"
                return
        raise AssertionError(said)

    def bench(self, scenario: str, **fields: Any) -> Result:
        """Make a run."""
        recipe = make_recipe({}, {"scenario": scenario, "ramp_s": 0.1, "settle_s": 0.1, **fields})
        return Run(self.url, recipe, pid=self.pid, limits=LIMITS).make(lambda progress: None, lambda: False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the built-in model."""
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "penstock",
            "serve",
            "--port",
            "0",
            "--journal",
            "memory:",
            "--keepalive-s",
            "1",
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("served"),
    ) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


def test_tokens(served: Served) -> None:
    """Each connection has its paced turn, and all of them come to their end."""
    result = served.bench("tokens", connections=10, duration_s=1.0, rate=50.0)
    assert (result.started, result.opened, result.finished, result.errors) == (10, 10, 10, {})
    assert result.options["clock"] == "stamps"
    assert result.duration_s == pytest.approx(1.0, abs=0.2)
    assert result.events == pytest.approx(500, abs=60)
    assert result.times["latency"].count == pytest.approx(result.events, abs=30)
    assert 0 < result.times["latency"].p50 < 100
    assert result.times["gap"].p50 == pytest.approx(20, abs=8)
    assert (
        0 < result.times["connect"].p50 <= result.times["first_byte"].p50 <= result.times["first_token"].p50
    )
    assert result.times["turn"].count == 10
    assert sum(moment.events for moment in result.timeline) >= result.events
    assert max(moment.open for moment in result.timeline) == 10
    assert 0 < result.load_cpu < 1
    assert result.server is not None
    assert result.server.cpu_us_per_event is not None
    assert 0 < result.server.cpu_s < 2
    assert result.server.rss_after_kb > 10_000


def test_fanout(served: Served) -> None:
    """All see the one turn; two load processes say together what one would."""
    result = served.bench("fanout", connections=20, duration_s=0.4, rate=50.0, workers=2)
    assert (result.started, result.opened, result.errors) == (20, 20, {})
    assert result.events == pytest.approx(20 * 20, rel=0.15)
    assert result.options["clock"] == "stamps"
    assert result.times["latency"].p50 < 100


def test_burst(served: Served) -> None:
    """As fast as it goes, again and again; nothing is lost."""
    result = served.bench("burst", ramp_s=0.0, settle_s=0.0, chunks=3_000, repeats=3)
    assert (result.started, result.finished, result.errors) == (3, 3, {})
    assert result.events == 3 * (3_000 + 6)
    assert result.times["turn"].count == 3
    assert result.options["clock"] == "none"


def test_idle(served: Served) -> None:
    """Nothing comes but comments, and the memory of it is measured."""
    result = served.bench("idle", connections=30, duration_s=1.3)
    assert (result.opened, result.events, result.errors) == (30, 0, {})
    assert 15 <= int(result.options["keepalives"]) <= 60
    assert result.server is not None
    assert result.server.kb_per_connection is not None


def test_stalled(served: Served) -> None:
    """Some stop reading; the others notice nothing."""
    result = served.bench("stalled", connections=10, share=0.3, duration_s=0.6, rate=100.0)
    assert (result.opened, result.errors) == (10, {})
    assert result.options["held"] == 3
    assert result.events == pytest.approx(7 * 60, rel=0.15)
    assert result.times["latency"].p50 < 100


def test_flapping(served: Served) -> None:
    """They come back with what they have seen, and miss nothing."""
    result = served.bench("flapping", connections=5, duration_s=1.0, rate=50.0, stay_s=0.2, away_s=0.05)
    assert result.errors == {}
    assert result.started > 10
    assert result.options["checked"] == 5
    assert result.times["resume"].count >= 10


def test_half_open(served: Served) -> None:
    """They ask and are never heard of again."""
    result = served.bench("half-open", connections=3, chunks=500, duration_s=0.5)
    assert (result.opened, result.finished, result.errors) == (3, 0, {})
    assert int(result.options.get("held", 0)) + int(result.options.get("cut", 0)) == 3


def test_resume(served: Served) -> None:
    """They drop out in the middle and get the rest: all of it, and once."""
    result = served.bench(
        "resume", connections=5, rate=50.0, duration_s=0.8, settle_s=0.0, stay_s=0.3, away_s=0.1
    )
    assert (result.started, result.finished, result.errors) == (10, 5, {})
    assert result.options["checked"] == 5
    assert (result.times["resume"].count, result.times["caught_up"].count) == (5, 5)


async def test_a_websocket_of_quart() -> None:
    """Behind our server: each message is an event, and a close is the end."""
    app = QuartTrio("test")

    @app.websocket("/ws")
    async def talk() -> None:
        assert await websocket.receive() == "go"
        for _ in range(50):
            await websocket.send(f'{{"delta": "word @{time.time_ns()}"}}')
            await trio.sleep(0.002)

    recipe = make_recipe(
        {},
        {"scenario": "churn", "transport": "websocket", "message": "go", "rate": 10.0, "duration_s": 0.3},
    )
    async with open_server(app) as url:
        run = Run(url.replace("http", "ws"), recipe, limits=LIMITS)
        result = await trio.to_thread.run_sync(lambda: run.make(lambda progress: None, lambda: False))
    assert (result.started, result.finished, result.errors) == (3, 3, {})
    assert 50 < result.times["latency"].count <= 150  # those of the last come partly after the measured time
    assert result.options["clock"] == "stamps"


def command(*arguments: str, url: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "penstock", "bench", url, *arguments]


def test_the_command_says_all_of_it(served: Served, tmp_path: Path) -> None:
    """A table for people, JSON for programs, and a status for CI."""
    recipe = tmp_path / "x.toml"
    recipe.write_text('scenario = "churn"\nrate = 40.0\nduration_s = 0.5\nexpect = ["errors = 0"]')
    done = subprocess.run(
        command("--recipe", str(recipe), "--json", "-", "--pid", str(served.pid), url=served.url),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout, type=Result)
    assert (result.started, result.finished, result.errors) == (20, 20, {})
    assert result.times["turn"].count == 20
    assert result.expectations[0].held
    assert "20 started, 20 opened, 20 finished" in done.stderr
    assert "held: errors = 0 (found 0)" in done.stderr

    fails = CliRunner().invoke(
        main,
        [
            *("bench", served.url, "--recipe", str(recipe), "--json", str(tmp_path / "out.json")),
            *("--expect", "p99<1us", "--expect", "resume.p50<1s", "--header", "x-test: 1"),
        ],
    )
    assert fails.exit_code == 1
    assert re.search(r"DID NOT HOLD: p99<1us \(found [\d.]+\)", fails.output)
    assert "DID NOT HOLD: resume.p50<1s (found not measured)" in fails.output
    assert json.loads((tmp_path / "out.json").read_bytes())["finished"] == 20


def children(pid: int) -> list[int]:
    """Those that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_gone(pids: list[int]) -> None:
    """Wait until processes have ended, for five seconds at most."""
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_gives_what_there_is(served: Served, tmp_path: Path) -> None:
    """Once: a result that says that it is partial. The turns are stopped, and no process is left."""
    file = tmp_path / "out.json"
    with subprocess.Popen(
        command("--connections", "4", "--ramp", "0", "--settle", "0", "--json", str(file), url=served.url),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = itertools.islice(process.stdout, 5)
            assert any("measuring" in line for line in lines)
            workers = children(process.pid)
            assert workers
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=10)
        finally:
            process.kill()
    result = json.loads(file.read_text())
    assert process.returncode == 0
    assert (result["partial"], result["opened"], result["errors"]) == (True, 4, {})
    assert 0 < result["duration_s"] < 9
    assert "ended early" in said
    wait_gone(workers)


def test_load_processes_die_with_their_parent(served: Served) -> None:
    """Even when it is killed."""
    with subprocess.Popen(
        command("--connections", "2", url=served.url), stdout=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while not (workers := children(process.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
    wait_gone(workers)


def test_a_process_has_children_and_memory() -> None:
    """All of a family count, and one that is not there is named."""
    alone = usage(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        deadline = time.monotonic() + 5
        while usage(child.pid).rss_kb < 5_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert usage(os.getpid()).rss_kb >= alone.rss_kb + 4_000
    with pytest.raises(ValueError, match="there is no process"):
        usage(child.pid)
