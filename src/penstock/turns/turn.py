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

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import UNSET, UnsetType

from penstock.errors import AnswerError
from penstock.turns.parts import ApprovedCall, Step, TextPart, ToolCall
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Data,
    Error,
    File,
    Finish,
    FinishReason,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    SourceDocument,
    SourceUrl,
    Start,
    TextDelta,
    TextEnd,
    TextStart,
)
from penstock.wire.messages import UIMessage

if TYPE_CHECKING:
    from penstock.turns.runner import Runner


class Turn:
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
        self._parts = 0

    def __repr__(self) -> str:
        return f"<Turn {self.id} of chat {self.chat_id}>"

    @property
    def prompt(self) -> str:
        """The text of the last user message, empty if there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text
        return ""

    async def write(self, chunk: AnyChunk) -> None:
        """Write any chunk.

        Chunks that say how a whole message begins or ends, as they come in a relayed stream, are understood rather
        than written, because the runner alone writes those: metadata of `start` and `finish` becomes the message's,
        a finish reason becomes the turn's, `abort` makes the turn end as stopped, and `error` raises `AnswerError`.
        """
        match chunk:
            case Start(message_metadata=metadata) | Finish(message_metadata=metadata):
                if isinstance(chunk, Finish) and chunk.finish_reason is not UNSET:
                    self.finish_reason = chunk.finish_reason
                if metadata is UNSET:
                    return
                chunk = MessageMetadata(message_metadata=metadata)
            case Error(error_text=text):
                raise AnswerError(text)
            case Abort(reason=reason):
                self._runner.aborted_by_producer("" if reason is UNSET else reason)
                return
        await self._runner.write(chunk)

    async def write_from(self, chunks: AsyncIterable[AnyChunk]) -> None:
        """Write a whole stream of chunks. An async generator is closed, also when this is cancelled."""
        if isinstance(chunks, AsyncGenerator):
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self.write(chunk)
        else:
            async for chunk in chunks:
                await self.write(chunk)

    def text(self, *, id: str | None = None) -> TextPart:
        """Open a text part: `async with turn.text() as text: await text.write("…")`."""
        part_id = id or self._next_id("text")
        return TextPart(
            self._runner,
            TextStart(id=part_id),
            lambda delta: TextDelta(id=part_id, delta=delta),
            TextEnd(id=part_id),
        )

    def reasoning(self, *, id: str | None = None) -> TextPart:
        """Open a reasoning part, written like text."""
        part_id = id or self._next_id("reasoning")
        return TextPart(
            self._runner,
            ReasoningStart(id=part_id),
            lambda delta: ReasoningDelta(id=part_id, delta=delta),
            ReasoningEnd(id=part_id),
        )

    def step(self) -> Step:
        """Open a step: one model call. What is still open inside it is closed with it."""
        return Step(self._runner)

    def tool_call(
        self,
        name: str,
        input: Any = UNSET,
        *,
        id: str | None = None,
        title: str | UnsetType = UNSET,
        dynamic: bool = False,
        provider_executed: bool = False,
    ) -> ToolCall:
        """Open a tool call.

        With `input` it is there at once; without, stream it with `write_input` or give it with `set_input`. A call
        that is left without an output is the client's to execute.

        Args:
            name: the tool's name, as the client knows it.
            input: any JSON value.
            id: the call's id, unique in the chat; made up if it is None.
            title: what the client may show instead of the name.
            dynamic: the tool isn't known to the client's types.
            provider_executed: the model's provider runs it; the client's `onToolCall` is not asked.
        """
        return ToolCall(
            self._runner,
            name,
            input,
            id or f"call_{secrets.token_hex(12)}",
            {
                "title": title,
                "dynamic": dynamic or UNSET,
                "provider_executed": provider_executed or UNSET,
            },
        )

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

    async def source(self, url: str, *, title: str | UnsetType = UNSET, id: str | None = None) -> None:
        """Name a web page that the answer rests on."""
        await self.write(SourceUrl(source_id=id or self._next_id("source"), url=url, title=title))

    async def source_document(
        self, title: str, media_type: str, *, filename: str | UnsetType = UNSET, id: str | None = None
    ) -> None:
        """Name a document that the answer rests on."""
        source_id = id or self._next_id("source")
        await self.write(
            SourceDocument(source_id=source_id, media_type=media_type, title=title, filename=filename)
        )

    async def file(self, url: str, media_type: str) -> None:
        """Add a file to the answer. `url` may be a `data:` URL within the limit of one chunk."""
        await self.write(File(url=url, media_type=media_type))

    async def data(
        self, name: str, value: Any, *, id: str | UnsetType = UNSET, transient: bool = False
    ) -> None:
        """Write the app's own chunk `data-NAME`.

        Args:
            name: without the `data-`.
            value: any JSON value.
            id: a later chunk of the same name and id replaces this one's value.
            transient: the client is told and does not keep it; a viewer that is behind may miss it.
        """
        await self.write(Data(type=f"data-{name}", data=value, id=id, transient=transient or UNSET))

    async def metadata(self, value: Any) -> None:
        """Merge into the message's metadata: objects deeply, everything else replaced."""
        await self.write(MessageMetadata(message_metadata=value))

    def _next_id(self, noun: str) -> str:
        self._parts += 1
        return f"{noun}-{self._parts}"


Producer: TypeAlias = Callable[[Turn], Awaitable[None]]
"""What writes a turn: `async def answer(turn: Turn) -> None`."""
