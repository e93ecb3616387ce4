"""A small tool loop: Python functions that a model may call, until it has nothing more to call.

    async def get_weather(city: str) -> str:
        '''The weather now.'''
        ...

    async def answer(turn: Turn) -> None:
        await run_tools(turn, upstream, [get_weather, tool(delete_note, approval=True)])

The loop keeps nothing beside the turn: what was called, what came of it and what waits for the user is read from the
message so far. So an approval may be given days later, and to another process.

| a call | what the model and the user read of it | and then |
|---|---|---|
| returned a value | the value, as JSON | the model is asked again |
| raised `ToolError` | its text | the same |
| raised anything else | that the tool failed; the exception goes to the log | the same |
| its input does not fit, or there is no such tool | that, and where | the same |
| raised `AnswerError` | its text | the turn fails |
| is to be approved | the question | the others of its step end; the turn is suspended |
"""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec
import trio

from penstock.errors import AnswerError, LocalProtocolError, ToolError, TurnSealedError
from penstock.limits import TOOLS
from penstock.relay.tool_schema import Signature, ToolSchema
from penstock.turns.parts import TOOL_FAILED, OpenCall, ToolCall
from penstock.turns.turn import Turn
from penstock.wire.messages import UIMessage

logger = logging.getLogger("penstock.relay")

NO_SUCH_TOOL = "There is no tool of this name."
BAD_INPUT = "The input does not fit: "
BAD_OUTPUT = "The tool's output has no JSON form, or is too long."

Approval: TypeAlias = bool | str | Callable[[Mapping[str, Any]], bool | str]
"""Whether a call needs the user's approval. A string is a yes, and the reason that the user reads."""

_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("penstock_tool_threads")


class Model(typing.Protocol):
    """What `run_tools` asks. `penstock.relay.upstream.Upstream` is one."""

    async def ask(self, turn: Turn, messages: Sequence[UIMessage], tools: Sequence[ToolSchema]) -> None:
        """Ask once, and write the whole answer into the turn: tool calls with their input, and without an output.

        What this answer cost may be said in the metadata of its `Finish`, as `{"usage": {…}}`; the loop adds answers up.

        Args:
            turn: where to write. Not what to ask about: its own message so far is the last of `messages`.
            messages: the conversation so far, oldest first, with the calls of earlier steps and what came of them.
            tools: what the model may call; may be empty.
        """


class Tool:
    """A function that a model may call. Made by `tool`."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        description: str | None,
        approval: Approval,
        approval_wait_s: float | None,
    ) -> None:
        self._function = function
        self._signature = Signature(function, name=name, description=description)
        self._approval = approval
        self.approval_wait_s = approval_wait_s

    def __repr__(self) -> str:
        return f"<Tool {self.schema.name}>"

    @property
    def schema(self) -> ToolSchema:
        """What a model is told of it."""
        return self._signature.schema

    def read(self, value: Any) -> dict[str, Any]:
        """Read a call's input. Raises ToolError."""
        try:
            return self._signature.decode(value)
        except msgspec.ValidationError as exc:
            raise ToolError(f"{BAD_INPUT}{exc}"[: TOOLS.error_chars]) from exc

    def needs_approval(self, arguments: Mapping[str, Any]) -> bool | str:
        """Say whether a call with these arguments is to be approved, or with a string: and why."""
        return self._approval(arguments) if callable(self._approval) else self._approval

    async def run(self, arguments: Mapping[str, Any]) -> Any:
        """Call the function: an async one here, a sync one in a thread, which a cancellation abandons."""
        if inspect.iscoroutinefunction(self._function):
            return await self._function(**arguments)
        return await trio.to_thread.run_sync(
            partial(self._function, **arguments), abandon_on_cancel=True, limiter=_thread_limiter()
        )


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    approval: Approval = False,
    approval_wait_s: float | None = None,
) -> Tool:
    """Make a tool of a function, for all turns or for one.

    What the function returns goes to the model and the user as JSON: all that msgspec can encode, in up to one chunk
    (`chunk_bytes`). An async function is cancelled with its turn. A sync one runs in a thread, which nothing can
    interrupt: when the turn is stopped meanwhile, nobody waits for it, it runs to its end, and what it returns is
    dropped. Neither has a deadline but its own.

    Args:
        function: every parameter has a type that msgspec decodes from JSON, and can be given by name.
        name: the function's own if it is None.
        description: its docstring, without the section `Args:`, if it is None.
        approval: whether the user has to approve a call before it runs; a string says why. A function of the decoded
            arguments decides call by call. If that raises, the call fails, and does not run.
        approval_wait_s: None: the turn is suspended, and the client's next request goes on with it. A number: the turn
            runs on and waits for so many seconds, inside the stream.

    Raises:
        TypeError: if a parameter has no type or none that has a JSON schema, or can't be given by name alone.
        ValueError: if the name is not 1 to 64 of `A-Z a-z 0-9 _ -`.
    """
    if inspect.iscoroutinefunction(approval):
        raise TypeError("what decides about approvals is not async")
    return Tool(
        function, name=name, description=description, approval=approval, approval_wait_s=approval_wait_s
    )


async def run_tools(
    turn: Turn,
    model: Model,
    tools: Sequence[Tool | Callable[..., Any]],
    *,
    max_steps: int = TOOLS.steps,
    max_parallel: int = TOOLS.parallel,
) -> None:
    """Answer the turn: ask the model, run the tools that it calls, and ask again, until it calls none.

    Calls that the user has approved since the last request run first. When it returns, the model had nothing more to
    call; or a call waits for the user, and returning from the producer suspends the turn; or `max_steps` were taken,
    and `turn.finish_reason` is still `tool-calls`. The user may send another message then, and the model has it all.

    Args:
        turn: must have been given no call whose id the model might use.
        model: what is asked.
        tools: functions, or what `tool` made of them. Names must differ.
        max_steps: how often the model is asked in this request, at most. The calls of the last answer are still run.
        max_parallel: how many tools run at once; the others of the same answer wait.

    Raises:
        TypeError, ValueError: if a function can't be a tool, two tools have the same name, or a number is below 1.
        AnswerError: what a tool raised, within a group. What else tools raise fails their calls only.
        Exception: what the model raised.

    Cancellation: ends the model's answer and all tools; the calls that had no output are closed by the turn's end.
    """
    if max_steps < 1 or max_parallel < 1:
        raise ValueError("max_steps and max_parallel are at least 1")
    kit = _Kit(turn, tools, max_parallel)
    await kit.run(turn.approved_calls(), approved=True)
    for _ in range(max_steps):
        if any(part.get("state") == "approval-requested" for part in turn.message.parts):
            return
        known, spent = len(turn.message.parts), _usage(turn.message.metadata)
        turn.finish_metadata = None
        await model.ask(turn, _conversation(turn), kit.schemas)
        usage = _usage(turn.finish_metadata)
        if spent and usage:
            both = {key: spent.get(key, 0) + usage.get(key, 0) for key in spent | usage}
            await turn.metadata({"usage": both})
        made = {part["toolCallId"] for part in turn.message.parts[known:] if _is_ours(part)}
        if not made:
            return
        await kit.run([call for call in turn.open_calls() if call.id in made], approved=False)


class _Kit:
    """The tools of one turn, and how many of them run."""

    def __init__(self, turn: Turn, tools: Sequence[Tool | Callable[..., Any]], max_parallel: int) -> None:
        self._turn = turn
        self._slots = trio.CapacityLimiter(max_parallel)
        self._tools: dict[str, Tool] = {}
        for each in tools:
            made = each if isinstance(each, Tool) else tool(each)
            if self._tools.setdefault(made.schema.name, made) is not made:
                raise ValueError(f"two tools have the name {made.schema.name}")
        self.schemas = [made.schema for made in self._tools.values()]

    async def run(self, calls: Sequence[OpenCall], *, approved: bool) -> None:
        """Give all calls of a step their outputs, but for those that the user is asked about now."""
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(self._settle, call, approved, name=f"tool {call.name}")

    async def _settle(self, call: OpenCall, approved: bool) -> None:
        async with self._turn.resume_call(call) as opened:
            try:
                await self._answer(call, opened, approved)
                return
            except ToolError as exc:
                text = exc.error_text
            await opened.error(text)

    async def _answer(self, call: OpenCall, opened: ToolCall, approved: bool) -> None:
        """Ask the user, or run the tool and give its output. Raises ToolError for all that is the call's own failure."""
        made = self._tools.get(call.name)
        if made is None:
            raise ToolError(NO_SUCH_TOOL)
        try:
            arguments = made.read(call.input)
            if not approved and (reason := made.needs_approval(arguments)):
                said = reason if isinstance(reason, str) else msgspec.UNSET
                if made.approval_wait_s is None:
                    await opened.request_approval(reason=said)
                    return
                if not (await opened.approval(wait_s=made.approval_wait_s, reason=said)).approved:
                    return
            async with self._slots:
                output = await made.run(arguments)
        except ToolError:
            raise
        except Exception as exc:
            # A tool with a nursery of its own raises groups.
            leaves = list(_leaves(exc))
            if any(isinstance(leaf, AnswerError | TurnSealedError) for leaf in leaves):
                raise
            for leaf in leaves:
                if isinstance(leaf, ToolError):
                    raise ToolError(leaf.error_text) from exc
            logger.error("the tool %s failed in turn %s", call.name, self._turn.id, exc_info=exc)
            raise ToolError(TOOL_FAILED) from exc
        try:
            await opened.output(msgspec.to_builtins(output, str_keys=True))
        except (TypeError, ValueError, RecursionError, LocalProtocolError) as exc:
            logger.error("the output of the tool %s in turn %s: %s", call.name, self._turn.id, exc)
            raise ToolError(BAD_OUTPUT) from exc


def _conversation(turn: Turn) -> list[UIMessage]:
    """Return what the model is to know: the message so far is the journal's, not the copy that a client sent back."""
    messages = [message for message in turn.messages if message.id != turn.id]
    message = turn.message
    return [*messages, message] if message.parts else messages


def _usage(metadata: Any) -> dict[str, int]:
    """Return what a message's metadata says that it cost."""
    usage = metadata.get("usage") if isinstance(metadata, dict) else None
    return (
        {key: count for key, count in usage.items() if type(count) is int} if isinstance(usage, dict) else {}
    )


def _is_ours(part: Mapping[str, Any]) -> bool:
    """Say whether a part is a tool call that the model's provider doesn't run by itself."""
    return "toolCallId" in part and part.get("providerExecuted") is not True


def _leaves(raised: BaseException) -> Iterator[BaseException]:
    if isinstance(raised, BaseExceptionGroup):
        for child in raised.exceptions:
            yield from _leaves(child)
    else:
        yield raised


def _thread_limiter() -> trio.CapacityLimiter:
    # Not Trio's own: tools that hang must not take the threads that others wait for.
    try:
        return _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(TOOLS.threads)
        _threads.set(limiter)
        return limiter
