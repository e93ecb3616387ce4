"""One burst turn over HTTP: events a second, and the server's CPU for each, beside sse-starlette in the same run.

    python benchmarks/burst.py [--chunks 100000] [--rounds 5] [--json]

Each server is one process on one core, the reader another on another core, over loopback. Rounds are interleaved and
medians reported. penstock does its whole work here: grammar, journal, positions, version filter. The peer only frames
text that is ready. CPU time is the trustworthy number on a shared machine; wall time is beside it.

Needs `uv pip install -r requirements/bench.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 20.0


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def server(command: list[str], port: int) -> Iterator[int]:
    """Run a server on core 0 until the block ends; yield its process id once it accepts."""
    with subprocess.Popen(
        ["taskset", "-c", "0", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise RuntimeError(f"{command[0]} did not start") from None
                    time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()


def read_burst(port: int, chunks: int) -> int:
    """Ask for one turn of so many deltas, read it to the end, and return how many came."""
    body = json.dumps(
        {
            "id": f"c{time.monotonic_ns()}",
            "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": f"/long {chunks}"}]}],
        }
    ).encode()
    head = f"POST /api/chat HTTP/1.1\r\nhost: bench\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    found = 0
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(head.encode() + body)
        rest = b""
        while data := sock.recv(1 << 18):
            data = rest + data
            found += data.count(b'"text-delta"')
            rest = data[-11:] if b'"text-delta"' not in data[-11:] else b""
    return found


def measure(pid: int, port: int, chunks: int) -> tuple[float, float]:
    """Return wall and CPU microseconds per event of one burst."""
    cpu, wall = cpu_s(pid), time.perf_counter()
    got = read_burst(port, chunks)
    wall, cpu = time.perf_counter() - wall, cpu_s(pid) - cpu
    if got != chunks:
        raise RuntimeError(f"{got} of {chunks} chunks came")
    return wall / chunks * 1e6, cpu / chunks * 1e6


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    ours, theirs = free_port(), free_port()
    results: dict[str, list[tuple[float, float]]] = {"penstock": [], "sse-starlette": []}
    with (
        server(
            [
                str(Path(sys.executable).with_name("penstock")),
                "serve",
                "--port",
                str(ours),
                "--journal",
                "memory:",
            ],
            ours,
        ) as our_pid,
        server(
            [sys.executable, str(HERE / "peers" / "sse_starlette_app.py"), str(theirs)], theirs
        ) as their_pid,
    ):
        for pid, port in ((our_pid, ours), (their_pid, theirs)):
            read_burst(port, 1000)
            read_burst(port, options.chunks)
            assert pid
        for _ in range(options.rounds):
            results["penstock"].append(measure(our_pid, ours, options.chunks))
            results["sse-starlette"].append(measure(their_pid, theirs, options.chunks))
    table = {
        name: {
            "wall_us": round(statistics.median(wall for wall, _ in rounds), 2),
            "cpu_us": round(statistics.median(cpu for _, cpu in rounds), 2),
        }
        for name, rounds in results.items()
    }
    ratio = {
        key: round(table["sse-starlette"][key] / table["penstock"][key], 1) for key in ("wall_us", "cpu_us")
    }
    if options.json:
        print(
            json.dumps(
                {
                    "chunks": options.chunks,
                    "rounds": options.rounds,
                    "python": platform.python_version(),
                    "platform": platform.platform(),
                    "versions": {
                        name: version(name)
                        for name in ("penstock", "sse-starlette", "uvicorn", "trio", "hypercorn")
                    },
                    "results": table,
                    "ratio": ratio,
                },
                indent=2,
            )
        )
        return
    print(f"one turn of {options.chunks:,} deltas, median of {options.rounds}")
    for name, row in table.items():
        print(f"{name:15} {1e6 / row['wall_us']:>12,.0f} events/s   {row['cpu_us']:>7.2f} us CPU an event")
    print(f"penstock is {ratio['wall_us']}x as fast, {ratio['cpu_us']}x by CPU")


if __name__ == "__main__":
    main()
