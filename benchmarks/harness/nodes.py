"""Nodes as the harness has them: processes that are told what to do, say what they did, and may be killed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.load import LoadError
from harness.machine import LOAD_CORE, SERVER_CORE, cpu_s

Said = dict[str, Any]

START_S = 15.0
ANSWER_S = 20.0
STOP_S = 3.0
HUB_NODE = Path(__file__).with_name("hub_node.py")


class Node:
    """A process. Made by `running_node`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout.fileno()
        self._said: list[Said] = []
        self._unread = b""

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has used."""
        return cpu_s(self.pid)

    def tell(self, what: str, **rest: object) -> None:
        """Tell it to do something."""
        self._stdin.write(json.dumps({"do": what, **rest}).encode() + b"\n")
        self._stdin.flush()

    def wait(self, what: str, *, tag: str | None = None, within_s: float = ANSWER_S) -> Said:
        """Return the next that it says of a kind, and keep the rest for later.

        Raises:
            LoadError: it does not say it in time.
        """
        deadline = time.monotonic() + within_s
        while True:
            for said in self._said:
                if said["say"] == what and tag in (None, said.get("tag")):
                    self._said.remove(said)
                    return said
            if not self._take(deadline - time.monotonic()):
                raise LoadError(f"a node did not say `{what}` within {within_s:g} s")

    def ask(self, what: str, answer: str, *, within_s: float = ANSWER_S, **rest: object) -> Said:
        """Tell it to do something and return what it says."""
        self.tell(what, **rest)
        return self.wait(answer, within_s=within_s)

    def forget(self) -> None:
        """Forget what it has said until now: it is of a run that failed."""
        while self._take(0.0):
            pass
        self._said.clear()

    def kill(self) -> list[Said]:
        """Kill it, and return all that it said before."""
        self._process.kill()
        self._process.wait()
        while self._take(0.0):
            pass
        return self._said

    def _take(self, within_s: float) -> bool:
        """Take in what it has said; False if there is nothing in time, or nothing more to come."""
        if not select.select([self._stdout], [], [], max(within_s, 0.0))[0]:
            return False
        data = os.read(self._stdout, 1 << 20)
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._said += [json.loads(line) for line in lines]
        return bool(data)


@contextmanager
def running_node(
    command: list[str], *, core: int, environment: Mapping[str, str] | None = None
) -> Iterator[Node]:
    """Run a node until the block ends.

    Raises:
        LoadError: it did not start.
    """
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    with process:
        node = Node(process)
        try:
            node.wait("here", within_s=START_S)
            yield node
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def hub_node(url: str) -> list[str]:
    """Return the command of a node of ours."""
    return [sys.executable, str(HUB_NODE), url]


OWNER_CORE, FOLLOWER_CORE = SERVER_CORE, LOAD_CORE
