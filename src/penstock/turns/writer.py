"""What can be written into a message, by whoever writes: a turn's producer, or one of its parallel workers."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any

import trio
from msgspec import UNSET, UnsetType

from penstock.turns.parts import PIECES, REASONING, TEXT, Sink, Step, TextPart, ToolCall
from penstock.wire.chunks import (
    AnyChunk,
    Data,
    File,
    MessageMetadata,
    SourceDocument,
    SourceUrl,
)


class Writer(ABC):
    """Everything that a message is made of."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._parts = 0

    def write_nowait(self, chunk: AnyChunk) -> None:
        """Write any chunk, without a checkpoint.

        Raises:
            trio.WouldBlock: if the store is far behind; nothing was written. `await write` would wait for it.
        """
        if self._sink.behind:
            raise trio.WouldBlock
        self._write_nowait(chunk)

    @abstractmethod
    def _write_nowait(self, chunk: AnyChunk) -> bool:
        """Write any chunk, and return whether a pause is due."""

    def _write_all_nowait(self, chunks: Sequence[AnyChunk]) -> bool:
        """Write chunks, and return whether a pause is due."""
        due = False
        for chunk in chunks:
            due = self._write_nowait(chunk) or due
        return due

    async def write(self, chunk: AnyChunk) -> None:
        """Write any chunk."""
        if self._write_nowait(chunk):
            await self._sink.pause()

    async def _write_all(self, chunks: Sequence[AnyChunk]) -> None:
        if self._write_all_nowait(chunks):
            await self._sink.pause()

    async def write_from(self, chunks: AsyncIterable[AnyChunk] | Iterable[AnyChunk]) -> None:
        """Write a whole stream of chunks: what the source has already, in one go.

        Args:
            chunks: any iterable, a memory channel, or an async iterable. An async generator is closed, also when this is
                cancelled.
        """
        if isinstance(chunks, trio.MemoryReceiveChannel):
            async for chunk in chunks:
                await self._write_all([chunk, *islice(_waiting(chunks), PIECES - 1)])
        elif isinstance(chunks, AsyncGenerator):
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self.write(chunk)
        elif isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                await self.write(chunk)
        else:
            rest = iter(chunks)
            while some := list(islice(rest, PIECES)):
                await self._write_all(some)

    def text(self, *, id: str | None = None) -> TextPart:
        """Open a text part: `async with turn.text() as text: await text.write("…")`."""
        return TextPart(self._sink, TEXT, id or self._next_id("text"))

    def reasoning(self, *, id: str | None = None) -> TextPart:
        """Open a reasoning part, written like text."""
        return TextPart(self._sink, REASONING, id or self._next_id("reasoning"))

    def step(self) -> Step:
        """Open a step: one model call. What is still open inside it is closed with it."""
        return Step(self._sink)

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
            self._sink,
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


def _waiting(chunks: trio.MemoryReceiveChannel[AnyChunk]) -> Iterator[AnyChunk]:
    """Yield what a channel has now."""
    try:
        while True:
            yield chunks.receive_nowait()
    except (trio.WouldBlock, trio.EndOfChannel):
        pass
