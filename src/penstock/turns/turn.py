"""What a producer sees: a turn to write one assistant message into.

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            async for token in my_model(turn.messages):
                await text.write(token)

A producer is a function that is given a writer, never a generator that yields: inside it nurseries and timeouts are
legal. It never says how the turn ends; it returns, raises, or is cancelled, and the runner draws the conclusion.

The parts (text, reasoning, step, tool call) are context managers. A part that is left by a return or by an error ends
itself, so that a producer may catch a failed tool's error and go on. A part that is left by a cancellation writes
nothing: whatever is open then is the runner's to close.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from msgspec import UNSET, UnsetType

from penstock.errors import AnswerError, LocalProtocolError, PenstockError, RemoteProtocolError
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Data,
    Error,
    File,
    Finish,
    FinishReason,
    FinishStep,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    SourceDocument,
    SourceUrl,
    Start,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputAvailable,
    ToolInputDelta,
    ToolInputError,
    ToolInputStart,
    ToolOutputAvailable,
    ToolOutputError,
)
from penstock.wire.codec import decode_json
from penstock.wire.messages import UIMessage

if TYPE_CHECKING:
    from penstock.turns.runner import Runner

TOOL_FAILED = "The tool failed."
"""What the user reads of a tool call whose block raised. The exception's own text stays here."""


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
        self._runner.write_nowait(chunk)
        await self._runner.wait_turn_to_write()

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
            self,
            TextStart(id=part_id),
            lambda delta: TextDelta(id=part_id, delta=delta),
            TextEnd(id=part_id),
        )

    def reasoning(self, *, id: str | None = None) -> TextPart:
        """Open a reasoning part, written like text."""
        part_id = id or self._next_id("reasoning")
        return TextPart(
            self,
            ReasoningStart(id=part_id),
            lambda delta: ReasoningDelta(id=part_id, delta=delta),
            ReasoningEnd(id=part_id),
        )

    def step(self) -> Step:
        """Open a step: one model call. What is still open inside it is closed with it."""
        return Step(self)

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
            self,
            name,
            input,
            id or f"call_{secrets.token_hex(12)}",
            {
                "title": title,
                "dynamic": dynamic or UNSET,
                "provider_executed": provider_executed or UNSET,
            },
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

    def _end_part(self, kind: type[BaseException] | None, *last: AnyChunk) -> None:
        """Write a part's last chunks without a checkpoint, unless it is left by a cancellation."""
        if kind is not None and not issubclass(kind, Exception):
            return
        try:
            for chunk in last:
                self._runner.write_nowait(chunk)
        except PenstockError:
            # An error that is on its way is the one to tell; the runner closes what this could not.
            if kind is None:
                raise


class TextPart:
    """An open text or reasoning part."""

    def __init__(self, turn: Turn, start: AnyChunk, delta: Callable[[str], AnyChunk], end: AnyChunk) -> None:
        self._turn = turn
        self._start = start
        self._delta = delta
        self._end = end

    async def __aenter__(self) -> Self:
        await self._turn.write(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn._end_part(kind, self._end)

    async def write(self, delta: str) -> None:
        """Write more of the part's text. An empty string writes nothing."""
        if delta:
            runner = self._turn._runner
            runner.write_nowait(self._delta(delta))
            await runner.wait_turn_to_write()


class Step:
    """An open step."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    async def __aenter__(self) -> Self:
        await self._turn.write(StartStep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Clients of 5 and 6 forget what is open when a step ends, so it is closed before.
        self._turn._end_part(kind, *self._turn._runner.open_text_ends(), FinishStep())


class ToolCall:
    """An open tool call."""

    def __init__(self, turn: Turn, name: str, input: Any, id: str, fields: dict[str, Any]) -> None:
        self._turn = turn
        self._name = name
        self._input = input
        self.id = id
        """The call's `toolCallId`."""
        self._fields = fields
        self._outputs = {key: value for key, value in fields.items() if key != "title"}
        self._input_text: list[str] = []
        self._has_input = False
        self._has_output = False

    async def __aenter__(self) -> Self:
        if self._input is UNSET:
            await self._turn.write(ToolInputStart(tool_call_id=self.id, tool_name=self._name, **self._fields))
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
        self._turn._end_part(kind, *last)

    async def write_input(self, delta: str) -> None:
        """Write more of the input's JSON text. It is parsed when the block ends, or at `set_input`'s word before."""
        if delta:
            self._input_text.append(delta)
            await self._turn.write(ToolInputDelta(tool_call_id=self.id, input_text_delta=delta))

    async def set_input(self, value: Any) -> None:
        """Give the whole input."""
        self._has_input = True
        await self._turn.write(self._available(value))

    async def output(self, value: Any, *, preliminary: bool = False) -> None:
        """Give the output: any JSON value. A preliminary one is replaced by the next."""
        await self._settle_input()
        self._has_output = not preliminary
        await self._turn.write(
            ToolOutputAvailable(
                tool_call_id=self.id, output=value, preliminary=preliminary or UNSET, **self._outputs
            )
        )

    async def error(self, text: str) -> None:
        """End the call with an error that the user may read."""
        await self._settle_input()
        self._has_output = True
        await self._turn.write(self._failed(text))

    async def _settle_input(self) -> None:
        if not self._has_input:
            chunk = self._parse_input()
            if isinstance(chunk, ToolInputError):
                raise LocalProtocolError("the streamed tool input is not JSON")
            self._has_input = True
            await self._turn.write(chunk)

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


Producer: TypeAlias = Callable[[Turn], Awaitable[None]]
"""What writes a turn: `async def answer(turn: Turn) -> None`."""
