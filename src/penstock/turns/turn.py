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
from penstock.turns.parts import OpenCall, ToolCall
from penstock.turns.writer import Writer
from penstock.wire.chunks import Abort, AnyChunk, Error, Finish, FinishReason, MessageMetadata, Start
from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage

if TYPE_CHECKING:
    from penstock.turns.runner import Runner


_ENDS = frozenset({Start, Finish, Error, Abort})


class TurnRequest:
    """The client's request that a turn answers, for a producer that passes it on. It is not in the journal.

    Args:
        body: the chat request, as it came in bytes or, from a WebSocket's frame, decoded.
        headers: by lower-case names.
    """

    def __init__(self, body: bytes | Mapping[str, Any], headers: Mapping[str, str]) -> None:
        self._body = body
        self.headers = headers
        """Cookies and tokens among them: not for a log."""

    def __repr__(self) -> str:
        return "<TurnRequest>"

    @property
    def body(self) -> bytes:
        """The JSON that the client sent, or would have sent with a POST."""
        return self._body if isinstance(self._body, bytes) else encode_json(self._body)


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
        request: TurnRequest | None = None,
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
        self.request = request
        """The client's own request. None if none began this run: the program did, or the turn was adopted."""
        self.finish_reason: FinishReason | None = None
        """Why the model stopped; what `finish` will say. `stop` where it is left None."""
        self.finish_metadata: Any = None
        """What the newest relayed `finish` said of the message, such as what an answer cost."""

    def __repr__(self) -> str:
        return f"<Turn {self.id} of chat {self.chat_id}>"

    @property
    def prompt(self) -> str:
        """The text of the last user message, empty if there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text
        return ""

    @property
    def message(self) -> UIMessage:
        """The assistant's message so far, put together anew each time. What is nested in it must not be changed."""
        return self._runner.message()

    @property
    def in_step(self) -> bool:
        """Whether a step is open."""
        return self._runner.in_step

    def open_text_ends(self) -> list[AnyChunk]:
        """Return the chunks that would close the text and reasoning parts which are open now, in their order."""
        return self._runner.open_text_ends()

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
                if isinstance(chunk, Finish):
                    self.finish_metadata = None if metadata is UNSET else metadata
                    if chunk.finish_reason is not UNSET:
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

    def approved_calls(self) -> list[OpenCall]:
        """Return the tool calls that the user has approved and that have no output yet.

        When a producer returned with an approval requested, the turn was suspended. The client's next request runs
        the producer again, and this is what it has to do first: `async with turn.resume_call(call) as tool:`.
        """
        return [
            _open_call(part)
            for part in self.message.parts
            if part.get("state") == "approval-responded" and part["approval"]["approved"] is True
        ]

    def open_calls(self) -> list[OpenCall]:
        """Return the tool calls, not the model's provider's own, that have no output and nobody was asked about."""
        return [
            _open_call(part)
            for part in self.message.parts
            if part.get("state") == "input-available" and part.get("providerExecuted") is not True
        ]

    def resume_call(self, call: OpenCall) -> ToolCall:
        """Open a tool call again, to give its output or, of one that nobody was asked about, to ask."""
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


def _open_call(part: Mapping[str, Any]) -> OpenCall:
    dynamic = part["type"] == "dynamic-tool"
    name = part["toolName"] if dynamic else part["type"].removeprefix("tool-")
    return OpenCall(part["toolCallId"], name, part.get("input"), dynamic)
