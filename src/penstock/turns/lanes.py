"""Lanes: side streams of a turn, for parallel workers.

A lane is a small message of its own, with its own grammar. Its chunks go through the turn's journal, so they have
positions and an order like all else, wrapped as `data-lane-chunk`: transient, and so no part of the turn's message.
The chat's followers are not sent them; of a lane they get `data-lane` chunks, one part per lane that is replaced in
place, with what the worker reports and how it ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from msgspec import UNSET

from penstock.errors import LocalProtocolError
from penstock.turns.approvals import Approvals
from penstock.turns.writer import Writer
from penstock.wire.chunks import LANE, LANE_CHUNK, AnyChunk, Data, Error, Finish, Start
from penstock.wire.codec import encode
from penstock.wire.grammar import Grammar

if TYPE_CHECKING:
    from penstock.turns.runner import Runner

_NAME = re.compile(r"[A-Za-z0-9._:~-]{1,64}")
FAILED = "The worker failed."


class _LaneSink:
    """Wraps a lane's chunks for the turn's journal."""

    def __init__(self, runner: Runner, name: str) -> None:
        self._runner = runner
        self._name = name
        self._grammar = Grammar()
        self.approvals: Approvals = runner.approvals

    @property
    def behind(self) -> bool:
        return self._runner.behind

    def write_nowait(self, chunk: AnyChunk) -> bool:
        encode(chunk)  # refused here, where the fault is, and not as a part of the wrapper
        self._grammar.apply(chunk)
        return self._runner.write_nowait(self._wrapped(chunk))

    def write_all_nowait(self, chunks: Sequence[AnyChunk], *, uniform: bool = False) -> bool:
        due = False
        for chunk in chunks:
            due = self.write_nowait(chunk) or due
        return due

    async def pause(self) -> None:
        await self._runner.pause()

    async def write(self, chunk: AnyChunk) -> None:
        encode(chunk)
        self._grammar.apply(chunk)
        await self._runner.write(self._wrapped(chunk))

    def open_text_ends(self) -> list[AnyChunk]:
        return self._grammar.text_ends()

    def closing_chunks(self, error_text: str | None) -> list[AnyChunk]:
        return self._grammar.closing_chunks(error_text)

    def _wrapped(self, chunk: AnyChunk) -> Data:
        return Data(type=LANE_CHUNK, data={"lane": self._name, "chunk": chunk}, transient=True)


class Lane(Writer):
    """A worker's own stream. A context manager: its end is written when the block ends."""

    def __init__(self, runner: Runner, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise LocalProtocolError("a lane's name is 1 to 64 of A-Z a-z 0-9 . _ : ~ -")
        self._lane_sink = _LaneSink(runner, name)
        super().__init__(self._lane_sink)
        self._runner = runner
        self.name = name

    async def __aenter__(self) -> Self:
        await self._runner.write(self._news("running"))
        await self._sink.write(Start(message_id=f"{self._runner.record.turn_id}.{self.name}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (kind is not None and not issubclass(kind, Exception)) or self._runner.sealed:
            return  # a cancelled lane ends with its turn
        failed = kind is not None
        for chunk in self._lane_sink.closing_chunks(FAILED if failed else None):
            self._sink.write_nowait(chunk)
        self._sink.write_nowait(Error(error_text=FAILED) if failed else Finish(finish_reason="stop"))
        self._runner.write_nowait(self._news("failed" if failed else "finished"))

    def _write_nowait(self, chunk: AnyChunk) -> bool:
        return self._sink.write_nowait(chunk)

    async def report(self, value: Any) -> None:
        """Tell the chat's followers how far the worker is; the next report replaces this one."""
        await self._runner.write(self._news("running", value))

    def _news(self, state: str, report: Any = UNSET) -> Data:
        news = {"lane": self.name, "state": state}
        if report is not UNSET:
            news["report"] = report
        return Data(type=LANE, id=self.name, data=news)
