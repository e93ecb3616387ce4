"""The servers that are measured: how each is started, on one core, and what each does less of than penstock.

A server is started with `running`, and stopped with its block: with SIGTERM, or with SIGKILL when that takes too long.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.machine import LOAD_CORE, SERVER_CORE, family

PEERS = Path(__file__).parent.parent / "peers"
START_S = 20.0
"""A server that doesn't answer by then has failed: the slowest takes 3 s on a busy machine."""
STOP_S = 2.0
"""Some wait a minute for their streams to end."""
POLL_S = 0.05


class ServerError(Exception):
    """A server can't be had or did not start. The message is a sentence."""


@dataclass(frozen=True)
class Kind:
    """A kind of server.

    Args:
        name: its key in the results.
        title: its name for people.
        command: given a folder of its own and its port, what to run on the server's core.
        less: what it does less of than penstock does, for the page.
        needs: what has to be there, by name: executables or files.
        companion: the same, of a process beside it on the load's core, with the port of that.
        turns: whether it can produce turns, or only fan them out.
        ours: whether it is penstock.
    """

    name: str
    title: str
    command: Callable[[Path, int, int], list[str]]
    less: str = ""
    needs: tuple[str, ...] = ()
    companion: Callable[[int, int], list[str]] | None = None
    turns: bool = True
    ours: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """One that runs."""

    kind: Kind
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Where its chat is."""
        return f"http://127.0.0.1:{self.port}/api/chat"


def _penstock(journal: str) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, other: int) -> list[str]:
        program = Path(sys.executable).with_name("penstock")
        where = journal.replace("FILE", str(folder / "chat.db"))
        return [str(program), "serve", "--port", str(port), "--journal", where, "--log-level", "error"]

    return command


def python_peer(file: str, *arguments: str) -> Callable[[Path, int, int], list[str]]:
    """Return the command of a peer that is one file in Python."""
    return lambda folder, port, other: [sys.executable, str(PEERS / file), *arguments, str(port)]


def _node(folder: Path, port: int, other: int) -> list[str]:
    return ["node", str(PEERS / "node_server.mjs"), str(port)]


def _go(folder: Path, port: int, other: int) -> list[str]:
    program = folder / "hub"
    built = subprocess.run(
        ["go", "build", "-o", str(program), str(PEERS / "hub.go")],
        capture_output=True,
        text=True,
        timeout=180.0,
    )
    if built.returncode:
        raise ServerError(f"go can't build the hub: {(built.stderr.strip().splitlines() or ['?'])[-1]}")
    return [str(program), str(port)]


def _nginx(folder: Path, port: int, other: int) -> list[str]:
    text = (PEERS / "nchan.conf").read_text()
    for word, value in {
        "USER": "user root;" if os.geteuid() == 0 else "",
        "MODULE": NCHAN_MODULE,
        "PORT": str(port),
        "PUBLISHER": str(other),
    }.items():
        text = text.replace(f"@{word}@", value)
    file = folder / "nginx.conf"
    file.write_text(text)
    return ["nginx", "-p", str(folder), "-c", str(file), "-e", "stderr"]


NCHAN_MODULE = "/usr/lib/nginx/modules/ngx_nchan_module.so"

KINDS = (
    Kind("penstock", "penstock, `memory:`", _penstock("memory:"), ours=True),
    Kind("penstock-sqlite", "penstock, `sqlite:`", _penstock("sqlite:FILE"), ours=True),
    Kind(
        "sse-starlette",
        "sse-starlette",
        python_peer("sse_starlette_app.py"),
        "no journal, grammar, resume, ids",
    ),
    Kind(
        "fastapi",
        "FastAPI `EventSourceResponse`",
        python_peer("fastapi_app.py"),
        "no journal, grammar, resume, ids; it validates each item",
    ),
    Kind(
        "starlette",
        "Starlette `StreamingResponse`",
        python_peer("starlette_app.py"),
        "no journal, grammar, resume, ids; a template instead of JSON",
    ),
    Kind(
        "uvicorn",
        "uvicorn, bare ASGI",
        python_peer("bare_asgi.py", "uvicorn"),
        "no journal, grammar, resume, ids, routes; a template instead of JSON",
    ),
    Kind(
        "granian",
        "Granian, bare ASGI",
        python_peer("bare_asgi.py", "granian"),
        "no journal, grammar, resume, ids, routes; a template instead of JSON; HTTP in Rust",
    ),
    Kind(
        "aiohttp",
        "aiohttp-sse, uvloop",
        python_peer("aiohttp_app.py"),
        "no journal, grammar, resume, ids; a template instead of JSON",
    ),
    Kind("node", "Node `http`", _node, "no journal, grammar, resume, ids", needs=("node",)),
    Kind(
        "go",
        "Go `net/http` hub",
        _go,
        "no journal, grammar, resume, ids; drops what a slow viewer does not take",
        needs=("go",),
        environment={"GOMAXPROCS": "1"},
    ),
    Kind(
        "nchan",
        "nginx + nchan",
        _nginx,
        "no turns: it fans out what another process publishes",
        needs=("nginx", NCHAN_MODULE),
        companion=lambda port, other: [
            sys.executable,
            str(PEERS / "nchan_publisher.py"),
            str(other),
            str(port),
        ],
        turns=False,
    ),
)


def missing(kind: Kind) -> str:
    """Return what a kind of server needs and is not here; empty if all is."""
    return ", ".join(need for need in kind.needs if shutil.which(need) is None and not Path(need).exists())


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(kind: Kind, folder: Path) -> Iterator[Server]:
    """Run a server until the block ends.

    Raises:
        ServerError: it did not start.
    """
    own = folder / f"{kind.name}-{free_port()}"
    own.mkdir(parents=True)
    port, other = free_port(), free_port()
    with ExitStack() as stack:
        log = stack.enter_context((own / "log").open("w+"))
        main = stack.enter_context(
            _process(kind.command(own, port, other), SERVER_CORE, log.fileno(), kind.environment)
        )
        watched = [main]
        if kind.companion is not None:
            watched.append(
                stack.enter_context(_process(kind.companion(port, other), LOAD_CORE, log.fileno(), {}))
            )
        deadline = time.monotonic() + START_S
        while not all(map(_listens, [port, other][: len(watched)])):
            if time.monotonic() > deadline or any(process.poll() is not None for process in watched):
                log.seek(0)
                last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
                raise ServerError(f"it did not start: {last[:200]}")
            time.sleep(POLL_S)
        yield Server(kind, port, main.pid)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


@contextmanager
def _process(
    command: list[str], core: int, log: int, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process pinned to a core, in a group of its own, and end all of the group with the block."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        process_group=0,
    )
    try:
        yield process
    finally:
        members = family(process.pid)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # What is left of it: workers whose parent was too slow, or is gone.
            for member in members[1:]:
                _kill(member, process.pid)
            process.kill()
            process.wait()


def _kill(pid: int, group: int) -> None:
    """Kill a process if it is still one of this group: its number may be another's by now."""
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == group:
            os.kill(pid, signal.SIGKILL)
