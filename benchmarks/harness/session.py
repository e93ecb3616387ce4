"""One run of the whole comparison: its servers, its book of runs, and its clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.load import Figures, LoadError
from harness.servers import Kind, Server, ServerError, missing, running

CONNECT_MS = 3.0
"""CPU of a new connection with a turn before it was measured: more than any server here takes."""
WATCH_SHARE = 0.7
"""Of that for one that only watches: no turn, no deltas."""
WATCH_MS = 1.0
"""The same for a server without turns."""
LOAD_MS = 0.25
"""What the load takes for a connection, however little a server does."""


class Session:
    """The servers of a comparison, up for as long as the block, and what was found.

    Args:
        kinds: the servers to measure.
        folder: for their files.
        minutes: how long it may take; what is optional is left out when that is over.
    """

    def __init__(self, kinds: Iterable[Kind], folder: Path, minutes: float) -> None:
        self.folder = folder
        self.runs: list[dict[str, Any]] = []
        """Every run, as it is put into the results."""
        self.missing: dict[str, str] = {}
        """Servers that could not be had, with the reason."""
        self.left_out: list[str] = []
        self.connect_ms: dict[str, float] = {}
        """CPU of a new connection with a short turn, by server."""
        self._kinds = list(kinds)
        self._servers: dict[str, Server] = {}
        self._stack = ExitStack()
        self._began = time.monotonic()
        self._ends = self._began + minutes * 60

    def __enter__(self) -> Self:
        try:
            for kind in self._kinds:
                if needs := missing(kind):
                    self._miss(kind, f"not installed: {needs}")
                    continue
                try:
                    self._servers[kind.name] = self._stack.enter_context(running(kind, self.folder))
                except ServerError as error:
                    self._miss(kind, str(error))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() > self._ends

    def servers(
        self, *, turns: bool = False, ours: bool = False, names: Collection[str] = ()
    ) -> list[Server]:
        """Return those that run: all, those that can produce turns, penstock, or those of these names."""
        return [
            server
            for server in self._servers.values()
            if (server.kind.turns or not turns)
            and (server.kind.ours or not ours)
            and (server.kind.name in names or not names)
        ]

    def has_time(self, step: str, seconds: float) -> bool:
        """Say whether there is time for an optional step; if not, note that it was left out."""
        if time.monotonic() + seconds <= self._ends:
            return True
        self.left_out.append(step)
        self.say(f"{step}: left out, for want of time")
        return False

    def ramp_s(self, server: Server, connections: int, *, watch: bool = True) -> float:
        """Return how long so many connections should take to arrive, to watch or for a turn, so that none overrun the server."""
        if server.kind.turns:
            each_ms = self.connect_ms.get(server.kind.name, CONNECT_MS) * (WATCH_SHARE if watch else 1.0)
        else:
            each_ms = WATCH_MS
        return min(max(connections * max(each_ms, LOAD_MS) * 1.2 / 1000, 0.5), 40.0)

    def run(
        self, workload: str, server: Server, make: Callable[[], Figures], **parameters: float
    ) -> Figures | None:
        """Make a run and note it, failed or not. Returns its figures, None if it failed or there is no time left."""
        if self.over:
            self.left_out.append(f"{workload} of {server.kind.name}")
            return None
        run: dict[str, Any] = {"workload": workload, "server": server.kind.name, **parameters}
        found: Figures | None = None
        try:
            found = make()
            run |= found
        except (LoadError, ServerError) as error:
            run["failed"] = str(error)
        self.runs.append(run)
        told = ", ".join(f"{name} {value:g}" for name, value in parameters.items())
        figures = "  ".join(
            f"{name} {found[name]:,g}"
            for name in ("events_per_s", "p99_ms", "cpu_us", "server_cpu", "load_cpu", "kb", "ms")
            if found is not None and name in found
        )
        self.say(f"{workload:9} {server.kind.name:16} {told:28} {figures or run.get('failed', '')}")
        return found

    def say(self, text: str) -> None:
        """Tell how it goes."""
        print(f"{self.elapsed_s / 60:5.1f} min  {text}", file=sys.stderr, flush=True)

    def _miss(self, kind: Kind, reason: str) -> None:
        self.missing[kind.name] = reason
        self.say(f"LEFT OUT: {kind.title}: {reason}")
