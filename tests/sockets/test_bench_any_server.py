"""`penstock bench` against servers that are not ours: known schedules, other wires, odd and hostile ones."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import msgspec
import pytest
from click.testing import CliRunner

from certificate import Certificate, make_certificate
from penstock.bench.limits import BENCH
from penstock.bench.load import Load
from penstock.bench.loop import Loop
from penstock.bench.plan import Order
from penstock.bench.recipe import make_recipe
from penstock.bench.result import Result
from penstock.bench.run import Run
from penstock.bench.summary import Summary
from penstock.cli import main

LIMITS = msgspec.structs.replace(BENCH, drain_s=1.0, stop_s=0.5)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
RATE = 100


class ScriptedServer:
    """A server that does on each connection what it is told to, in a thread of its own."""

    def __init__(self, script: Callable[[socket.socket, bytes], None]) -> None:
        self._script = script
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                sock, _ = self._listener.accept()
                self._start(lambda sock=sock: self._serve(sock))  # type: ignore[misc]

    def _serve(self, sock: socket.socket) -> None:
        # A client may leave whenever it likes.
        with sock, contextlib.suppress(OSError):
            sock.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request:
                request += sock.recv(65_536) or b"\r\n\r\n"
            self.requests.append(request)
            self._script(sock, request)

    def bench(self, scenario: str = "tokens", **fields: Any) -> Result:
        """Make a run."""
        return self._run(scenario, fields).make(lambda progress: None, lambda: False)

    def bench_here(self, scenario: str = "burst", **fields: Any) -> Summary:
        """Make a run in this process, which starts sooner and has no say in how long things take."""
        loop = Loop()
        load = Load(Order(self._run(scenario, fields).plan, 0, 1), loop, lambda progress: None)
        load.start(time.time_ns())
        loop.run()
        loop.close()
        return Summary([load.report()])

    def _run(self, scenario: str, fields: dict[str, Any]) -> Run:
        """Make ready: GETs, unless it is told otherwise."""
        limits = msgspec.structs.replace(LIMITS, drain_s=fields.pop("drain_s", LIMITS.drain_s))
        fields = {
            "transport": "eventsource",
            "path": "/",
            "ramp_s": 0.0,
            "settle_s": 0.0,
            "connections": 1,
            "rate": float(RATE),
            "duration_s": 0.5,
            "stop": False,
            **fields,
        }
        recipe = make_recipe({}, {"scenario": scenario, **fields})
        return Run(self.url, recipe, limits=limits)


def chunk(data: bytes) -> bytes:
    """Frame one chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(due_ns: int | None = None, text: str = "word") -> bytes:
    """Make an event; one that says when it was due, if it has a time."""
    stamp = "" if due_ns is None else f" @{due_ns}"
    return b'data: {"type":"text-delta","id":"1","delta":"%s%s "}\n\n' % (text.encode(), stamp.encode())


def paced(
    sock: socket.socket, count: int, *, late_s: float = 0.0, pause_at: int = -1, stamped: bool = True
) -> None:
    """Write events by a schedule, each so late, and stand still for 0.3 s once."""
    began_ns = time.time_ns()
    for number in range(count):
        due_ns = began_ns + int(number / RATE * 1e9)
        wait_s = (due_ns - time.time_ns()) / 1e9 + late_s + (0.3 if number == pause_at else 0.0)
        if wait_s > 0:
            time.sleep(wait_s)
        sock.sendall(chunk(event(due_ns if stamped else None)))


def test_what_is_late_by_50_ms_is_measured_as_50_ms() -> None:
    """By the times that the events tell."""

    def script(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED)
        paced(sock, 30, late_s=0.05)

    with ScriptedServer(script) as server:
        result = server.bench(connections=3, duration_s=0.3)
    assert result.options["clock"] == "stamps"
    assert result.times["latency"].p50 == pytest.approx(51, abs=9)
    assert result.times["latency"].min >= 50


@pytest.mark.parametrize("stamped", [True, False], ids=["stamps", "pace"])
def test_a_server_that_stands_still_shows_in_the_percentiles(stamped: bool) -> None:
    """All that was due meanwhile was late, each by what was left of it: no coordinated omission."""

    def script(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED)
        paced(sock, 70, pause_at=15, stamped=stamped)
        sock.sendall(chunk(DONE) + b"0\r\n\r\n")

    with ScriptedServer(script) as server:
        result = server.bench(connections=2, duration_s=0.8)
    assert result.options["clock"] == ("stamps" if stamped else "pace")
    latency = result.times["latency"]
    # 30 of each 70 events fell into it: from 300 ms down to nothing.
    assert latency.count == pytest.approx(140, abs=4)
    assert latency.p99 == pytest.approx(295, abs=20)
    assert latency.p90 == pytest.approx(235, abs=30)
    assert latency.p50 < 8
    assert result.times["gap"].p50 == pytest.approx(10, abs=3)


def test_who_waits_for_others_waits_from_when_it_was_due() -> None:
    """A server that takes one at a time, 40 ms each, and 40 a second come: the queue is in the numbers."""
    one_at_a_time = threading.Lock()

    def script(sock: socket.socket, request: bytes) -> None:
        with one_at_a_time:
            time.sleep(0.04)
        sock.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(event() + DONE) + event() + DONE)

    with ScriptedServer(script) as server:
        result = server.bench("churn", rate=40.0, duration_s=0.5)
        few = server.bench_here("churn", rate=40.0, duration_s=0.5, max_in_flight=2)
    assert (result.started, result.finished, result.errors) == (20, 20, {})
    # The last one came at 475 ms, and was served after 20 times 40 ms; on a busy machine, later.
    assert 300 < result.times["turn"].max < 1_000
    assert result.times["turn"].p50 > 100
    assert few.errors["not started"] + few.started == 20
    assert few.errors["not started"] >= 5


def end_with_reset(sock: socket.socket, request: bytes) -> None:
    """Begin, then reset."""
    sock.sendall(CHUNKED + chunk(event()))
    time.sleep(0.05)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(data: bytes) -> Callable[[socket.socket, bytes], None]:
    """Write all of it, and close."""
    return lambda sock, request: sock.sendall(data)


def say_slowly(data: bytes) -> Callable[[socket.socket, bytes], None]:
    """Write it byte by byte, and close."""

    def script(sock: socket.socket, request: bytes) -> None:
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
            time.sleep(0.0005)

    return script


def say_in_parts(sock: socket.socket, request: bytes) -> None:
    """Write a chunk of one event, then one that looks like it, and is longer."""
    stamped = event(time.time_ns())
    longer = chunk(stamped + b"\r\n" + stamped)
    for part in (
        CHUNKED,
        chunk(stamped),
        longer[: -len(stamped) - 2],
        longer[-len(stamped) - 2 :] + b"0\r\n\r\n",
    ):
        sock.sendall(part)
        time.sleep(0.05)


LENGTH = HEAD + b"content-length: %d\r\n\r\n"
TWO = event() + event()


@pytest.mark.parametrize(
    ("script", "events", "finished", "errors"),
    [
        (say(CHUNKED + chunk(TWO + DONE) + b"0\r\n\r\n"), 3, 1, {}),
        (say(CHUNKED + chunk(TWO) + b"0\r\n\r\n"), 2, 1, {}),
        (say(LENGTH % len(TWO) + TWO), 2, 1, {}),
        (say(HEAD + b"\r\n" + TWO), 2, 1, {}),
        (say(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + LENGTH % len(TWO) + TWO), 2, 1, {}),
        (say_slowly(LENGTH % (len(TWO) + 11) + TWO.replace(b"\n", b"\r\n") + b": x\n" + b"\n" * 3), 2, 1, {}),
        (say_slowly(CHUNKED + chunk(TWO[:30]) + chunk(TWO[30:]) + b"0\r\n\r\n"), 2, 1, {}),
        (say_in_parts, 3, 1, {}),
        (say(CHUNKED + chunk(TWO)), 2, 0, {"cut": 1}),
        (say(CHUNKED + chunk(event() + event()[:20]) + b"0\r\n\r\n"), 1, 0, {"cut": 1}),
        (say(LENGTH % 999 + TWO), 2, 0, {"cut": 1}),
        (say(HEAD + b"\r\n" + TWO[:-1]), 1, 0, {"cut": 1}),
        (say(HEAD), 0, 0, {"cut": 1}),
        (say(b""), 0, 0, {"cut": 1}),
        (say(CHUNKED + b"nonsense\r\n"), 0, 0, {"malformed": 1}),
        (say(b"SSH-2.0-OpenSSH_9\r\n\r\n"), 0, 0, {"malformed": 1}),
        (say(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"), 0, 0, {"status 503": 1}),
        (end_with_reset, 1, 0, {"reset": 1}),
    ],
)
def test_odd_servers(
    script: Callable[[socket.socket, bytes], None], events: int, finished: int, errors: dict[str, int]
) -> None:
    """What came is counted, whatever way it came, and how it ended is told apart."""
    with ScriptedServer(script) as server:
        # A burst, because it is over when its work is.
        result = server.bench_here("burst", repeats=1)
    assert (result.events, result.finished, result.errors) == (events, finished, errors)


def test_servers_that_say_nothing_or_refuse() -> None:
    """Neither keeps the tool from ending, and neither is taken for success."""

    def silent(sock: socket.socket, request: bytes) -> None:
        sock.recv(1)

    with ScriptedServer(silent) as server:
        result = server.bench_here("tokens", connections=2, duration_s=0.2)
    assert (result.opened, result.errors) == (0, {"no answer": 2})
    done = CliRunner().invoke(
        main, ["bench", server.url, "--connections", "2", "--ramp", "0", "--settle", "0"]
    )
    assert done.exit_code == 3
    assert "2 refused" in done.output
    assert "nothing could be measured" in done.output


def test_an_end_of_its_own() -> None:
    """With --end, only that event ends a stream well."""
    body = CHUNKED + chunk(event() + b"event: over\ndata: bye, all\n\n") + b"0\r\n\r\n"
    with ScriptedServer(say(body)) as server:
        assert server.bench_here(repeats=1, end="bye").finished == 1
        assert server.bench_here(repeats=1, end="all").errors == {"cut": 1}


def test_what_is_sent_is_what_was_asked_for() -> None:
    """Templates are filled in, headers are ours unless they are given."""
    with ScriptedServer(say(LENGTH % len(DONE) + DONE)) as server:
        server.bench_here(
            connections=2,
            repeats=2,
            chunks=7,
            method="PUT",
            path="{url}/x/{n}?turn={turn}",
            body='{"a": {"b": "{count} {chat}"}}',
            headers={"X-Test": "{n}", "accept": "text/plain"},
        )
        lines = sorted(request.split(b"\r\n")[0] for request in server.requests)
    assert lines == [b"PUT /x/%d?turn=%d HTTP/1.1" % (n, turn) for n in (0, 1) for turn in (1, 2)]
    request = server.requests[0]
    chats = {request.rpartition(b'"7 ')[2] for request in server.requests}
    assert len(chats) == 4
    assert b"\r\naccept: text/plain\r\n" in request
    assert b"text/event-stream" not in request
    assert b"\r\ncontent-length: " in request
    assert b"\r\nx-test: " in request


def test_what_was_not_seen_to_end_is_stopped() -> None:
    """So that nothing is left running on the server: each turn, by its chat."""

    def script(sock: socket.socket, request: bytes) -> None:
        if b"/stop HTTP" in request:
            sock.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif b"-0-1" in request:
            sock.sendall(LENGTH % len(DONE) + DONE)
        else:
            sock.sendall(CHUNKED + chunk(event()))
            sock.recv(1)

    with ScriptedServer(script) as server:
        summary = server.bench_here(
            "tokens",
            transport="post",
            connections=3,
            duration_s=0.1,
            stop=True,
            stop_path="/{chat}/stop",
            drain_s=0.1,
        )
        asked = {request.split()[1] for request in server.requests if b"/stop HTTP" in request}
    assert (summary.opened, summary.finished, summary.errors) == (3, 1, {})
    assert len(asked) == 2
    assert all(path.startswith(b"/bench-") and path.endswith((b"-1-1/stop", b"-2-1/stop")) for path in asked)


def test_who_resumes_is_checked() -> None:
    """What is repeated or left out by a server that resumes badly is an error, and only there."""
    began_ns = time.time_ns()
    times = [began_ns + int(number / RATE * 1e9) for number in range(40)]

    def script(sock: socket.socket, request: bytes) -> None:
        back = b"last-event-id: 19\r\n" in request
        first = 0 if not back else 15 if b"/repeats" in request else 24 if b"/skips" in request else 20
        sock.sendall(CHUNKED)
        for number in range(first, 40 if back else 20):
            sock.sendall(chunk(b"id: %d\n" % number + event(times[number])))
        if back:
            sock.sendall(chunk(DONE) + b"0\r\n\r\n")
        else:
            sock.recv(1)

    with ScriptedServer(script) as server:
        found = [
            server.bench_here("resume", path=path, chunks=40, duration_s=0.4, stay_s=0.1, away_s=0.02)
            for path in ("/well", "/repeats", "/skips")
        ]
    assert [result.errors for result in found] == [{}, {"repeated": 5}, {"missing": 4}]
    assert [result.counts["checked"] for result in found] == [1, 1, 1]


def test_who_stalls_or_vanishes_is_seen_to_be_cut() -> None:
    """And how long the server took for it."""

    def script(sock: socket.socket, request: bytes) -> None:
        sock.sendall(CHUNKED + chunk(event()))
        time.sleep(0.3)

    with ScriptedServer(script) as server:
        stalled = server.bench_here(
            "stalled", connections=2, share=0.5, producer=False, duration_s=0.5, settle_s=0.1
        )
        vanished = server.bench_here("half-open", connections=2, duration_s=0.5)
    assert stalled.counts["cut"] == 1
    assert stalled.times()["cut"].p50 == pytest.approx(200, abs=80)
    assert stalled.errors == {"cut": 1}  # the one that read to the end
    assert vanished.counts["cut"] == 2
    assert vanished.times()["kept"].p50 == pytest.approx(300, abs=80)
    assert vanished.errors == {}


def test_websockets() -> None:
    """Messages are events, pings are answered, and our first message goes out masked."""
    pongs: list[bytes] = []

    def script(sock: socket.socket, request: bytes) -> None:
        key = request.partition(b"sec-websocket-key: ")[2].partition(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        sock.sendall(
            b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: %s\r\n\r\n"
            % accept
        )
        hello = sock.recv(1_000)
        mask = hello[2:6]
        assert bytes(byte ^ mask[at % 4] for at, byte in enumerate(hello[6:])) == b'hello {"n": 0}'
        sock.sendall(b"\x89\x02hi")
        pongs.append(sock.recv(100))
        for _ in range(20):
            text = b'{"type":"chunk","chunk":{"delta":"@%d"}}' % (time.time_ns() - 20_000_000)
            sock.sendall(bytes([0x81, len(text)]) + text)
            time.sleep(0.005)
        sock.sendall(b"\x81\x05ended\x88\x02\x03\xe8" if b"/well" in request else b"\x88\x02\x03\xf3")
        sock.recv(100)

    with ScriptedServer(script) as server:
        well, badly = (
            server.bench_here(
                transport="websocket", repeats=1, path=path, message='hello {"n": {n}}', end="ended"
            )
            for path in ("/well", "/badly")
        )
    assert (well.events, well.finished, well.errors) == (21, 1, {})
    assert well.stamped
    assert well.times()["latency"].p50 == pytest.approx(21, abs=5)
    assert (badly.events, badly.finished, badly.errors) == (20, 0, {"closed 1011": 1})
    assert [pong[:2] for pong in pongs] == [b"\x8a\x82"] * 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for 127.0.0.1, and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_tls(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """With records that are larger than a read, and a certificate that is looked at."""
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    many = event() * 3_000

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            raw, _ = listener.accept()
            with raw, contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as sock:
                sock.recv(65_536)
                sock.sendall(LENGTH % len(many + DONE) + many + DONE)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        recipe = make_recipe(
            {}, {"scenario": "burst", "transport": "eventsource", "path": "/", "repeats": 1, "stop": False}
        )
        unknown = Run(url, recipe, limits=LIMITS).make(lambda progress: None, lambda: False)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        known = Run(url, recipe, limits=LIMITS).make(lambda progress: None, lambda: False)
        thread.join(5)
    assert unknown.errors == {"certificate": 1}
    assert (known.events, known.finished, known.errors) == (3_001, 1, {})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ftp://x"], "the URL begins with http://"),
        (["http://"], "names a host"),
        (["http://nowhere.invalid"], "nowhere.invalid can't be found"),
        (["http://x:99999"], "is no URL"),
        (["127.0.0.1:1", "--connections", "0"], "connections must be 1 to"),
        (["127.0.0.1:1", "--expect", "p99"], "is no expectation"),
        (["127.0.0.1:1", "--pid", "999999999"], "there is no process 999999999"),
        (["127.0.0.1:1", "--scenario", "fanout", "--transport", "post"], "fanout makes no sense with post"),
        (["127.0.0.1:1", "--json", "/nowhere/x.json"], "there is no directory /nowhere"),
        (["127.0.0.1:1", "--recipe", "/nowhere/x.toml"], "can't be read"),
        (["127.0.0.1:1", "--header", "x"], "--header is NAME:VALUE"),
    ],
)
def test_what_is_typed_wrong_is_said_in_a_sentence(arguments: list[str], sentence: str) -> None:
    """With the status of a usage error."""
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_too_few_descriptors_are_said_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what can be done about it."""
    monkeypatch.setattr("penstock.bench.run.raise_descriptor_limit", lambda: 100)
    done = CliRunner().invoke(main, ["bench", "127.0.0.1:1", "--connections", "200", "--workers", "1"])
    assert done.exit_code == 2
    assert "264 open descriptors are needed" in done.output
    assert "100 is the limit" in " ".join(done.output.split())


def test_without_its_packages_it_says_how_to_get_them() -> None:
    """In a sentence."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; sys.modules['hdrh.histogram'] = None; from penstock.cli import main; main(sys.argv[1:])",
            *("bench", "127.0.0.1:1"),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "Error: This needs two more packages: pip install 'penstock[bench]'\n"
