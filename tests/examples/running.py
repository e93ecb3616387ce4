"""Runs an example as its reader would: as a process of its own, on a free loopback port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
PENSTOCK = Path(sys.executable).with_name("penstock")
START_S = 20.0
"""Importing a provider's SDK takes seconds on a busy machine."""
END_S = 10.0


@dataclass
class Example:
    """An example that is being served."""

    url: str = ""
    said: list[str] = field(default_factory=list)
    """What it wrote on stderr, in pieces."""

    def log(self) -> str:
        """Return all that it wrote on stderr."""
        return "".join(self.said)


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without anybody's keys, and with no proxy between us and the loopback."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "ANTHROPIC_")) and not name.lower().endswith("_proxy")
    } | more


@asynccontextmanager
async def open_example(name: str, **variables: str) -> AsyncIterator[Example]:
    """Serve `module:producer` with `penstock serve`, or `script.py` by itself, and end it as Ctrl-C would.

    It must end with 0 and without a traceback on its way out.
    """
    if name.endswith(".py"):
        command = [sys.executable, name]
    else:
        command = [str(PENSTOCK), "serve", name, "--port", "0", "--journal", "memory:"]
    example = Example()
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                command,
                cwd=EXAMPLES,
                env=environment(**{"PORT": "0"} | variables),
                stdin=b"",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stderr is not None
        listening = trio.Event()

        async def listen(stderr: trio.abc.ReceiveStream) -> None:
            async for data in stderr:
                example.said.append(data.decode(errors="replace"))
                if found := re.search(r"listening on ((?:http|ws)://\S+)\s", example.log()):
                    example.url = found[1]
                    listening.set()
            listening.set()

        try:
            nursery.start_soon(listen, process.stderr)
            with trio.fail_after(START_S):
                await listening.wait()
            assert example.url, f"{name} ended: {example.log()}"
            yield example
            process.send_signal(signal.SIGINT)
            with trio.fail_after(END_S):
                await process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, example.log()
