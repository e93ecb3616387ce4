"""The parts of a message that a producer opens: text and reasoning, steps, tool calls.

All are context managers. A part that is left by a return or by an error ends itself, so that a producer may catch a
failed tool's error and go on. A part that is left by a cancellation writes nothing: what is open then is the runner's
to close.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import trio
from msgspec import UNSET, UnsetType

from penstock.errors import LocalProtocolError, PenstockError, RemoteProtocolError
from penstock.turns.approvals import Approvals, Decision, Holder, Verdict
from penstock.wire.chunks import (
    AnyChunk,
    FinishStep,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolApprovalRequest,
    ToolApprovalResponse,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputError,
    ToolInputStart,
    ToolOutputAvailable,
    ToolOutputDenied,
    ToolOutputError,
)
from penstock.wire.codec import decode_json

NO_DECISION = {
    Decision.expired: "Nobody decided in time whether this tool call may run.",
    Decision.client_gone: "The page that was asked about this tool call was closed.",
    Decision.superseded: "The answer was ended before anybody decided about this tool call.",
}
"""What a call ends with whose approval nobody decided."""

PIECES = 256
"""Chunks that are written in one go, before others run: a quarter of a millisecond of work."""

TOOL_FAILED = "The tool failed."
"""What the user reads of a tool call whose block raised. The exception's own text stays here."""


class Sink(Protocol):
    """Where parts are written: a turn's runner, or a lane of it."""

    approvals: Approvals

    @property
    def behind(self) -> bool:
        """Whether the store is so far behind that a producer is to wait."""

    def write_nowait(self, chunk: AnyChunk) -> bool:
        """Write a chunk without a checkpoint, and return whether a `pause` is due."""

    def write_all_nowait(self, chunks: Sequence[AnyChunk], *, uniform: bool = False) -> bool:
        """Write chunks without a checkpoint, and return whether a `pause` is due; `uniform` as `encode_deltas` has it."""

    async def write(self, chunk: AnyChunk) -> None:
        """Write a chunk."""

    async def pause(self) -> None:
        """Let others run, and wait for the store if it is far behind."""

    def open_text_ends(self) -> list[AnyChunk]:
        """Return the chunks that close the text and reasoning parts which are open now."""


def _end(sink: Sink, kind: type[BaseException] | None, *last: AnyChunk) -> None:
    """Write a part's last chunks without a checkpoint, unless it is left by a cancellation."""
    if kind is not None and not issubclass(kind, Exception):
        return
    try:
        for chunk in last:
            sink.write_nowait(chunk)
    except PenstockError:
        # An error that is on its way is the one to tell; the runner closes what this could not.
        if kind is None:
            raise


class TextKinds(NamedTuple):
    """The three kinds of chunk that a part of text is made of."""

    start: type[TextStart | ReasoningStart]
    delta: type[TextDelta | ReasoningDelta]
    end: type[TextEnd | ReasoningEnd]


TEXT = TextKinds(TextStart, TextDelta, TextEnd)
REASONING = TextKinds(ReasoningStart, ReasoningDelta, ReasoningEnd)


class TextPart:
    """An open text or reasoning part."""

    def __init__(self, sink: Sink, kinds: TextKinds, id: str) -> None:
        self._sink = sink
        self._start, self._delta, self._end = kinds
        self._id = id

    async def __aenter__(self) -> Self:
        await self._sink.write(self._start(id=self._id))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self._sink, kind, self._end(id=self._id))

    async def write(self, delta: str) -> None:
        """Write more of the part's text. An empty string writes nothing."""
        if delta and self._sink.write_nowait(self._delta(id=self._id, delta=delta)):
            await self._sink.pause()

    def write_nowait(self, delta: str) -> None:
        """Write more of the part's text, without a checkpoint.

        Raises:
            trio.WouldBlock: if the store is far behind; nothing was written. `await write` would wait for it.
        """
        if delta:
            if self._sink.behind:
                raise trio.WouldBlock
            self._sink.write_nowait(self._delta(id=self._id, delta=delta))

    async def write_all(self, deltas: Iterable[str]) -> None:
        """Write the part's text in pieces that are there already, each as a chunk. It costs a fraction of `write`."""
        rest = iter(deltas)
        while pieces := list(islice(rest, PIECES)):
            chunks = [self._delta(id=self._id, delta=piece) for piece in pieces if piece]
            # The id is a string: else the part could not have begun.
            if self._sink.write_all_nowait(chunks, uniform=set(map(type, pieces)) == {str}):
                await self._sink.pause()


class Step:
    """An open step."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def __aenter__(self) -> Self:
        await self._sink.write(StartStep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Clients of 5 and 6 forget what is open when a step ends, so it is closed before.
        _end(self._sink, kind, *self._sink.open_text_ends(), FinishStep())


class OpenCall(NamedTuple):
    """A tool call that has its input and no output."""

    id: str
    name: str
    input: Any
    dynamic: bool


class ToolCall:
    """An open tool call."""

    def __init__(
        self, sink: Sink, name: str, input: Any, id: str, fields: dict[str, Any], *, begun: bool = False
    ) -> None:
        self._sink = sink
        self._name = name
        self._input = input
        self.id = id
        """The call's `toolCallId`."""
        self._fields = fields
        self._outputs = {key: value for key, value in fields.items() if key != "title"}
        self._input_text: list[str] = []
        self._begun = self._has_input = begun
        self._has_output = False

    async def __aenter__(self) -> Self:
        if self._begun:
            await trio.lowlevel.checkpoint()
        elif self._input is UNSET:
            await self._sink.write(ToolInputStart(tool_call_id=self.id, tool_name=self._name, **self._fields))
        else:
            await self.set_input(self._input)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        last: list[AnyChunk] = []
        if kind is not None:
            if not self._has_output:
                last.append(self._failed(TOOL_FAILED))
        elif not self._has_input:
            last.append(self._parse_input())
        _end(self._sink, kind, *last)

    async def write_input(self, delta: str) -> None:
        """Write more of the input's JSON text. It is parsed when the block ends, or at `set_input`'s word before."""
        if delta:
            self._input_text.append(delta)
            await self._sink.write(ToolInputDelta(tool_call_id=self.id, input_text_delta=delta))

    async def set_input(self, value: Any) -> None:
        """Give the whole input."""
        self._has_input = True
        await self._sink.write(self._available(value))

    async def output(self, value: Any, *, preliminary: bool = False) -> None:
        """Give the output: any JSON value. A preliminary one is replaced by the next."""
        await self._settle_input()
        self._has_output = not preliminary
        await self._sink.write(
            ToolOutputAvailable(
                tool_call_id=self.id, output=value, preliminary=preliminary or UNSET, **self._outputs
            )
        )

    async def request_approval(self, *, reason: str | UnsetType = UNSET) -> None:
        """Ask the user whether the call may run, in the AI SDK's way: return from the producer after this.

        The turn is suspended then. See `Turn.approved_calls` for how it goes on.
        """
        await self._settle_input()
        await self._sink.write(
            ToolApprovalRequest(
                approval_id=f"approval_{secrets.token_hex(12)}", tool_call_id=self.id, reason=reason
            )
        )

    async def approval(
        self, *, holder: Holder = "turn", wait_s: float = math.inf, reason: str | UnsetType = UNSET
    ) -> Verdict:
        """Ask the user whether the call may run, and wait here for the answer.

        Approved, go on and give the output. In all other cases the call has ended, and the verdict says why.

        Args:
            holder: `"connection"`: the question ends, as `client_gone`, at once when the connection of the request
                closes that this turn answers; `"turn"`: it outlives connections.
            wait_s: seconds until it ends as `expired`.
            reason: why the question is asked, for the user.
        """
        await self._settle_input()
        approval_id = f"approval_{secrets.token_hex(12)}"
        self._sink.approvals.request(approval_id, holder)
        await self._sink.write(
            ToolApprovalRequest(approval_id=approval_id, tool_call_id=self.id, reason=reason)
        )
        verdict = await self._sink.approvals.wait(approval_id, wait_s)
        if verdict.decision in (Decision.approved, Decision.denied):
            await self._sink.write(
                ToolApprovalResponse(
                    approval_id=approval_id, approved=verdict.approved, reason=verdict.reason or UNSET
                )
            )
        if not verdict.approved:
            self._has_output = True
            text = NO_DECISION.get(verdict.decision)
            await self._sink.write(
                ToolOutputDenied(tool_call_id=self.id) if text is None else self._failed(text)
            )
        return verdict

    async def error(self, text: str) -> None:
        """End the call with an error that the user may read."""
        await self._settle_input()
        self._has_output = True
        await self._sink.write(self._failed(text))

    async def _settle_input(self) -> None:
        if not self._has_input:
            chunk = self._parse_input()
            if isinstance(chunk, ToolInputError):
                raise LocalProtocolError("the streamed tool input is not JSON")
            self._has_input = True
            await self._sink.write(chunk)

    def _parse_input(self) -> AnyChunk:
        text = "".join(self._input_text)
        try:
            return self._available(decode_json(text.encode()) if text else {})
        except (RemoteProtocolError, UnicodeEncodeError):
            self._has_output = True
            return ToolInputError(
                tool_call_id=self.id,
                tool_name=self._name,
                input=text,
                error_text="The tool input is not valid JSON.",
                **self._fields,
            )

    def _available(self, value: Any) -> AnyChunk:
        return ToolInputAvailable(tool_call_id=self.id, tool_name=self._name, input=value, **self._fields)

    def _failed(self, text: str) -> AnyChunk:
        return ToolOutputError(tool_call_id=self.id, error_text=text, **self._outputs)
