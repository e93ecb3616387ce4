"""What a producer sees: a turn to write one assistant message into.

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            async for token in my_model(turn.messages):
                await text.write(token)

A producer is a function that is given a writer, never a generator that yields: inside it nurseries and timeouts are
legal. It never says how the turn ends; it returns, raises, or is cancelled, and the runner draws the conclusion.

The parts (text, reasoning, step, tool call) are context managers; see `parts.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import UNSET

from penstock.errors import AnswerError
from penstock.turns.lanes import Lane
from penstock.turns.parts import ApprovedCall, ToolCall
from penstock.turns.writer import Writer
from penstock.wire.chunks import Abort, AnyChunk, Error, Finish, FinishReason, MessageMetadata, Start
from penstock.wire.messages import UIMessage

if TYPE_CHECKING:
    from penstock.turns.runner import Runner


_ENDS = frozenset({Start, Finish, Error, Abort})


class Turn(Writer):
    """The production of one assistant message.

    Every `await` on it is a checkpoint at least now and then; a cancelled write was either journalled whole or not at
    all. Writes raise `LocalProtocolError` for a chunk that is not legal here (and change nothing), and
    `TurnSealedError` once the turn has ended.
    """

    def __init__(
        self,
        runner: Runner,
        chat_id: str,
        turn_id: str,
        messages: Sequence[UIMessage],
        body: Mapping[str, Any],
    ) -> None:
        super().__init__(runner)
        self._runner = runner
        self.chat_id = chat_id
        self.id = turn_id
        """The assistant message's id."""
        self.messages = messages
        """The conversation so far, oldest first."""
        self.body = body
        """What else the client sent along, as its transport's `body` option does. Not validated."""
        self.finish_reason: FinishReason | None = None
        """Why the model stopped; what `finish` will say. `stop` where it is left None."""

    def __repr__(self) -> str:
        return f"<Turn {self.id} of chat {self.chat_id}>"

    @property
    def prompt(self) -> str:
        """The text of the last user message, empty if there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text
        return ""

    def _write_nowait(self, chunk: AnyChunk) -> bool:
        """Write any chunk.

        Chunks that say how a whole message begins or ends, as they come in a relayed stream, are understood rather
        than written, because the runner alone writes those: metadata of `start` and `finish` becomes the message's,
        a finish reason becomes the turn's, `abort` makes the turn end as stopped, and `error` raises `AnswerError`.
        """
        if type(chunk) not in _ENDS:
            return self._runner.write_nowait(chunk)
        match chunk:
            case Start(message_metadata=metadata) | Finish(message_metadata=metadata):
                if isinstance(chunk, Finish) and chunk.finish_reason is not UNSET:
                    self.finish_reason = chunk.finish_reason
                if metadata is UNSET:
                    return False
                chunk = MessageMetadata(message_metadata=metadata)
            case Error(error_text=text):
                raise AnswerError(text)
            case Abort(reason=reason):
                self._runner.aborted_by_producer("" if reason is UNSET else reason)
                return False
        return self._runner.write_nowait(chunk)

    def _write_all_nowait(self, chunks: Sequence[AnyChunk]) -> bool:
        if _ENDS.isdisjoint(map(type, chunks)):
            return self._runner.write_all_nowait(chunks)
        return super()._write_all_nowait(chunks)

    def approved_calls(self) -> list[ApprovedCall]:
        """Return the tool calls that the user has approved and that have no output yet.

        When a producer returned with an approval requested, the turn was suspended. The client's next request runs
        the producer again, and this is what it has to do first: `async with turn.resume_call(call) as tool:`.
        """
        return [
            ApprovedCall(
                part["toolCallId"],
                part["toolName"] if part["type"] == "dynamic-tool" else part["type"].removeprefix("tool-"),
                part.get("input"),
                part["type"] == "dynamic-tool",
            )
            for part in self._runner.message().parts
            if part.get("state") == "approval-responded" and part["approval"]["approved"] is True
        ]

    def resume_call(self, call: ApprovedCall) -> ToolCall:
        """Open an approved tool call again, to give its output."""
        return ToolCall(
            self._runner, call.name, UNSET, call.id, {"dynamic": call.dynamic or UNSET}, begun=True
        )

    def lane(self, name: str) -> Lane:
        """Open a side stream for a parallel worker: `async with turn.lane("worker:7") as worker:`.

        What is written into it is seen by those who ask for the lane. The chat's followers get its reports and its end.
        """
        return Lane(self._runner, name)

    async def flush(self) -> None:
        """Wait until the journal has stored all that was written so far; more than a write promises.

        Raises:
            StoreUnavailableError: if that can't be known.
        """
        await self._runner.flush()


Producer: TypeAlias = Callable[[Turn], Awaitable[None]]
"""What writes a turn: `async def answer(turn: Turn) -> None`."""
