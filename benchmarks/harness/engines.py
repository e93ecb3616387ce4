"""The journals that are measured: files, and a Redis and a NATS of our own, real processes on free ports of the loopback."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from harness.machine import LOAD_CORE, cpu_s
from harness.servers import ServerError, free_port

START_S = 5.0
STOP_S = 2.0
ANSWER_S = 5.0
PACKAGES = ("coredis", "nats-py", "trio-asyncio")


@dataclass(frozen=True)
class Journal:
    """A journal that is there to be measured.

    Args:
        name: its key in the results.
        title: its name for people.
        url: makes the URL of a new, empty one.
        nodes: whether several processes can share it.
        port: its server's; 0 if it has none.
        pid: its server's; 0 if it has none.
    """

    name: str
    title: str
    url: Callable[[], str]
    nodes: bool = True
    port: int = 0
    pid: int = 0

    def cpu_s(self) -> float:
        """Return the CPU seconds that its server has used; 0 if it has none."""
        return cpu_s(self.pid) if self.pid else 0.0


@contextmanager
def journals(folder: Path, names: Iterable[str] = ()) -> Iterator[tuple[list[Journal], dict[str, str]]]:
    """Run what the journals of these names need, all of them if none is given, until the block ends.

    Args:
        folder: for their files; a real disk, or durability costs nothing.
        names: which.

    Returns:
        Those that can be had, and why the others can't.
    """
    wanted = set(names) or set(_MAKERS)
    found: list[Journal] = []
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for name, (title, make) in _MAKERS.items():
            if name not in wanted:
                continue
            own = folder / name
            own.mkdir(parents=True)
            try:
                found.append(stack.enter_context(make(name, title, own)))
            except ServerError as error:
                missing[name] = str(error)
                print(f"LEFT OUT: {title}: {error}", file=sys.stderr, flush=True)
        yield found, missing


def commands(port: int) -> dict[str, tuple[int, float]]:
    """Return how often a Redis has executed each command, within scripts, too, and the microseconds they all took."""
    found = {}
    for line in ask(port, "INFO", "commandstats").splitlines():
        if line.startswith("cmdstat_"):
            name, _, figures = line.removeprefix("cmdstat_").partition(":")
            values = dict(pair.split("=") for pair in figures.split(","))
            found[name] = (int(values["calls"]), float(values["usec"]))
    return found


def ask(port: int, *words: str) -> str:
    """Send a Redis one command and return the answer, a string or a status."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_S) as sock, sock.makefile("rb") as answer:
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        sock.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        head = answer.readline().decode().strip()
        return answer.read(int(head[1:])).decode() if head.startswith("$") else head


def versions() -> dict[str, str]:
    """Return the versions of the engines and of the packages that speak to them."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    for name, program in (("redis-server", shutil.which("redis-server")), ("nats-server", _nats_program())):
        if program:
            done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10.0)
            words = done.stdout.replace("v=", "").replace("v", " ").split()
            found[name] = next((word for word in words if word[:1].isdigit() and "." in word), "?")
    return found


@contextmanager
def _memory(name: str, title: str, folder: Path) -> Iterator[Journal]:
    yield Journal(name, title, lambda: "memory:", nodes=False)


@contextmanager
def _sqlite(name: str, title: str, folder: Path) -> Iterator[Journal]:
    numbers = itertools.count()
    durability = name.partition("-")[2] or "full"
    yield Journal(name, title, lambda: f"sqlite:{folder}/{next(numbers)}.db?durability={durability}")


@contextmanager
def _redis(name: str, title: str, folder: Path) -> Iterator[Journal]:
    if shutil.which("redis-server") is None:
        raise ServerError("not installed: redis-server")
    if find_spec("coredis") is None:
        raise ServerError("not installed: coredis")
    numbers, port = itertools.count(), free_port()
    command = [
        "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", "",
        "--appendonly", "yes", "--appendfsync", name.partition("-")[2] or "everysec",
    ]  # fmt: skip
    with _process(command, port, folder) as pid:
        url = f"redis://127.0.0.1:{port}/0?prefix="
        yield Journal(name, title, lambda: f"{url}p{next(numbers)}:", port=port, pid=pid)


@contextmanager
def _nats(name: str, title: str, folder: Path) -> Iterator[Journal]:
    program = _nats_program()
    if program is None:
        raise ServerError("not installed: nats-server")
    if find_spec("nats") is None or find_spec("trio_asyncio") is None:
        raise ServerError("not installed: nats-py or trio-asyncio")
    if find_spec("penstock.journal.nats") is None:
        raise ServerError("there is no such store yet")
    numbers, port = itertools.count(), free_port()
    config = folder / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/store" }}\n')
    with _process([program, "-c", str(config)], port, folder) as pid:
        url = f"nats://127.0.0.1:{port}?stream="
        yield Journal(name, title, lambda: f"{url}p{next(numbers)}", port=port, pid=pid)


def _nats_program() -> str | None:
    """The one that is installed beside this Python, else any."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


_MAKERS = {
    "memory": ("`memory:`", _memory),
    "sqlite-normal": ("`sqlite:`, normal", _sqlite),
    "sqlite": ("`sqlite:`, full", _sqlite),
    "redis": ("`redis:`, fsync every second", _redis),
    "redis-always": ("`redis:`, fsync always", _redis),
    "nats": ("`nats:`", _nats),
}


@contextmanager
def _process(command: list[str], port: int, folder: Path) -> Iterator[int]:
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            ["taskset", "-c", str(LOAD_CORE), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            deadline = time.monotonic() + START_S
            while not _listens(port):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise ServerError("it did not start")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
