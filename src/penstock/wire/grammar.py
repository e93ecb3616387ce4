"""The grammar of one assistant message: what may follow, what is open, what closes it.

Theory of operation. A message is in one of six phases, each of its text and reasoning parts is open or not, and each
of its tool calls is in one of eight states. `TABLE` has a rule for every kind of chunk; a rule's columns say, for each
of these three, from what it leads to what. What a column does not name is refused. A chunk is legal if every column of
its rule allows it, and only then does anything change.

    message            before start ─start─> outside a step ─finish─> after finish
                       outside a step <─start-step, finish-step─> inside a step
                       outside a step ─abort─> after abort ─finish─> after finish
                       outside or inside a step ─error─> after error
    text, reasoning    closed <─start, end─> open
    tool call          unknown ─> streaming ─> available ─> (requested ─> approved or rejected) ─> (preliminary) ─> done

It is what a server may send, and stricter than what clients take, because they differ: those of `ai` 5 and 6 forget
open text when a step ends, and all of them look for a tool call whose input is under way in the current step only (and
make a second part of it elsewhere). So a step begins and ends with nothing open. A call without an output is not open
in this sense: a client executes it, or a user has to approve it, and the turn may finish meanwhile.

This file knows nothing of the message that the chunks make (`assembly.py`), nor which clients know a kind (`versions.py`).

Source: `processUIMessageStream` of the npm package `ai` 5.0, 6.0 and 7.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import islice
from typing import Final, NamedTuple

from msgspec import UNSET

from penstock.errors import LocalProtocolError
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Custom,
    Data,
    Error,
    File,
    Finish,
    FinishStep,
    MessageMetadata,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningFile,
    ReasoningStart,
    ResetStep,
    SourceDocument,
    SourceUrl,
    Start,
    StartStep,
    SteeringMessage,
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

UNFINISHED: Final = "The tool call was not completed."
"""What a call says that had not even its input when the turn ended well."""


class Phase(StrEnum):
    """Where in its life a message is. The values complete the sentence "… is not allowed"."""

    NEW = "before start"
    OPEN = "outside a step"
    STEP = "inside a step"
    ABORTED = "after abort, which only finish may follow"
    FINISHED = "after finish"
    FAILED = "after error"


class Call(StrEnum):
    """How far a tool call is. The values complete the sentence "the tool call …"."""

    UNKNOWN = "was never begun"
    STREAMING = "does not have all of its input yet"
    AVAILABLE = "has its input already"
    REQUESTED = "waits for an approval"
    APPROVED = "was approved already"
    REJECTED = "was not approved"
    PRELIMINARY = "has an output already"
    DONE = "has ended already"


class Rule(NamedTuple):
    """What a kind of chunk needs and does."""

    phases: Mapping[Phase, Phase] = {Phase.OPEN: Phase.OPEN, Phase.STEP: Phase.STEP}
    settled: bool = False
    """No text, reasoning or tool input may be open."""
    part: tuple[str, bool, bool] | None = None
    """Namespace of the part's id; whether the part is open before and after."""
    call: Mapping[Call, Call] | None = None
    when: tuple[str, Rule] | None = None
    """A field, and the rule that holds instead where the field is true."""


def _call(*before: Call, to: Call) -> Mapping[Call, Call]:
    return dict.fromkeys(before, to)


TABLE: Final[Mapping[type[AnyChunk], Rule]] = {
    # The message.
    Start: Rule({Phase.NEW: Phase.OPEN}),
    StartStep: Rule({Phase.OPEN: Phase.STEP}, settled=True),
    FinishStep: Rule({Phase.STEP: Phase.OPEN}, settled=True),
    ResetStep: Rule({Phase.STEP: Phase.STEP}),
    Abort: Rule({Phase.OPEN: Phase.ABORTED}, settled=True),
    Finish: Rule({Phase.OPEN: Phase.FINISHED, Phase.ABORTED: Phase.FINISHED}, settled=True),
    Error: Rule({Phase.OPEN: Phase.FAILED, Phase.STEP: Phase.FAILED}),
    # Parts with an end.
    TextStart: Rule(part=("text", False, True)),
    TextDelta: Rule(part=("text", True, True)),
    TextEnd: Rule(part=("text", True, False)),
    ReasoningStart: Rule(part=("reasoning", False, True)),
    ReasoningDelta: Rule(part=("reasoning", True, True)),
    ReasoningEnd: Rule(part=("reasoning", True, False)),
    # Tool calls.
    ToolInputStart: Rule(call=_call(Call.UNKNOWN, to=Call.STREAMING)),
    ToolInputDelta: Rule(call=_call(Call.STREAMING, to=Call.STREAMING)),
    ToolInputAvailable: Rule(call=_call(Call.UNKNOWN, Call.STREAMING, to=Call.AVAILABLE)),
    ToolInputError: Rule(call=_call(Call.UNKNOWN, Call.STREAMING, to=Call.DONE)),
    ToolApprovalRequest: Rule(call=_call(Call.AVAILABLE, to=Call.REQUESTED)),
    ToolApprovalResponse: Rule(
        call=_call(Call.REQUESTED, to=Call.REJECTED),
        when=("approved", Rule(call=_call(Call.REQUESTED, to=Call.APPROVED))),
    ),
    ToolOutputAvailable: Rule(
        call=_call(Call.AVAILABLE, Call.APPROVED, Call.PRELIMINARY, to=Call.DONE),
        when=(
            "preliminary",
            Rule(call=_call(Call.AVAILABLE, Call.APPROVED, Call.PRELIMINARY, to=Call.PRELIMINARY)),
        ),
    ),
    ToolOutputError: Rule(
        call=_call(
            Call.STREAMING,
            Call.AVAILABLE,
            Call.REQUESTED,
            Call.APPROVED,
            Call.REJECTED,
            Call.PRELIMINARY,
            to=Call.DONE,
        )
    ),
    ToolOutputDenied: Rule(call=_call(Call.REQUESTED, Call.REJECTED, to=Call.DONE)),
    # Whole in themselves.
    MessageMetadata: Rule(),
    ReasoningFile: Rule(),
    File: Rule(),
    SourceUrl: Rule(),
    SourceDocument: Rule(),
    Custom: Rule(),
    SteeringMessage: Rule(),
    Data: Rule(),
}


class _ToolCall:
    """What must stay the same of a tool call, and how far it is."""

    __slots__ = ("dynamic", "name", "state")

    def __init__(self, name: str, dynamic: bool) -> None:
        self.name = name
        self.dynamic = dynamic
        self.state = Call.UNKNOWN


class Grammar:
    """The state of one message."""

    def __init__(self) -> None:
        self._phase = Phase.NEW
        # Dicts for their order: what is open is closed in the order in which it was opened.
        self._open_text: dict[str, None] = {}
        self._open_reasoning: dict[str, None] = {}
        self._open_parts = {"text": self._open_text, "reasoning": self._open_reasoning}
        self._calls: dict[str, _ToolCall] = {}
        self._open_inputs: set[str] = set()
        self._approvals: dict[str, str] = {}
        """Approval id to tool call id."""
        self._calls_before_step = 0

    @property
    def started(self) -> bool:
        """Whether `start` was applied."""
        return self._phase is not Phase.NEW

    @property
    def ended(self) -> bool:
        """Whether a terminal chunk, `finish` or `error`, was applied."""
        return self._phase in (Phase.FINISHED, Phase.FAILED)

    @property
    def in_step(self) -> bool:
        """Whether a step is open."""
        return self._phase is Phase.STEP

    @property
    def awaits_client(self) -> bool:
        """Whether a tool call waits for the client: for its output, or for an approval."""
        return any(call.state in (Call.AVAILABLE, Call.REQUESTED) for call in self._calls.values())

    def call_state(self, call_id: str) -> Call:
        """Return how far a tool call is."""
        call = self._calls.get(call_id)
        return Call.UNKNOWN if call is None else call.state

    def is_dynamic(self, call_id: str) -> bool:
        """Return whether a tool call is a dynamic one, as each of its chunks must say."""
        call = self._calls.get(call_id)
        return call is not None and call.dynamic

    def apply(self, chunk: AnyChunk) -> None:
        """Check a chunk and take it in.

        Raises:
            LocalProtocolError: if the chunk is not legal here; nothing changed.
        """
        # Most chunks of a turn are deltas, of which the table would find only that the part is open. By type, because
        # an isinstance that is false takes longer than all else here.
        if type(chunk) is TextDelta:
            if chunk.id in self._open_text:
                return
        elif type(chunk) is ReasoningDelta:
            if chunk.id in self._open_reasoning:
                return
        elif type(chunk) is ToolInputDelta and chunk.tool_call_id in self._open_inputs:
            return
        rule = TABLE[type(chunk)]
        if rule.when is not None and getattr(chunk, rule.when[0]) is True:
            rule = rule.when[1]
        phase = rule.phases.get(self._phase)
        if phase is None:
            raise LocalProtocolError(f"{chunk.kind} is not allowed {self._phase}")
        if rule.settled:
            self._check_settled(chunk)
        if rule.part is not None:
            self._apply_to_part(chunk, *rule.part)
        elif rule.call is not None:
            self._apply_to_call(chunk, rule.call)
        if phase is not self._phase:
            self._phase = phase
            self._calls_before_step = len(self._calls)
            if phase is Phase.FAILED:  # or the shortcuts above would let the open parts go on
                self._open_text.clear()
                self._open_reasoning.clear()
                self._open_inputs.clear()
        elif type(chunk) is ResetStep:
            self._forget_step()

    def resume(self) -> None:
        """Let a message that has finished go on in another stream, with a `start` of its own.

        So a user's approval is answered: the tool calls and approvals are as they were.

        Raises:
            LocalProtocolError: if the message has not finished.
        """
        if self._phase is not Phase.FINISHED:
            raise LocalProtocolError("a message that has not finished can't go on in another stream")
        self._phase = Phase.NEW

    def text_ends(self) -> list[AnyChunk]:
        """Return the chunks that end the text and reasoning parts which are open now."""
        return [
            *(TextEnd(id=part_id) for part_id in self._open_text),
            *(ReasoningEnd(id=part_id) for part_id in self._open_reasoning),
        ]

    def closing_chunks(self, error_text: str | None) -> list[AnyChunk]:
        """Return the chunks that close, in a legal order, all that is open now; `finish` is legal after them.

        Args:
            error_text: what is said of every tool call without an output. None, for a turn that ended well, leaves
                them to whoever executes or approves them, except those that do not have their whole input.
        """
        if self._phase not in (Phase.OPEN, Phase.STEP):
            return []
        chunks = self.text_ends()
        for call_id, call in self._calls.items():
            if call.state is Call.STREAMING or (error_text is not None and call.state is not Call.DONE):
                chunks.append(
                    ToolOutputError(
                        tool_call_id=call_id,
                        error_text=UNFINISHED if error_text is None else error_text,
                        dynamic=call.dynamic or UNSET,
                    )
                )
        if self._phase is Phase.STEP:
            chunks.append(FinishStep())
        return chunks

    def _check_settled(self, chunk: AnyChunk) -> None:
        for namespace, open_parts in self._open_parts.items():
            for part_id in open_parts:
                raise LocalProtocolError(f"{chunk.kind} while the {namespace} part {part_id!r} is open")
        for call_id in self._open_inputs:
            raise LocalProtocolError(f"{chunk.kind} while the input of the tool call {call_id!r} is open")

    def _apply_to_part(self, chunk: AnyChunk, namespace: str, before: bool, after: bool) -> None:
        part_id: str = chunk.id  # type: ignore[union-attr, assignment]
        open_parts = self._open_parts[namespace]
        if (part_id in open_parts) is not before:
            state = "is not open" if before else "is open already"
            raise LocalProtocolError(f"{chunk.kind}: the {namespace} part {part_id!r} {state}")
        if after:
            open_parts[part_id] = None
        else:
            del open_parts[part_id]

    def _apply_to_call(self, chunk: AnyChunk, states: Mapping[Call, Call]) -> None:
        call_id = self._call_id(chunk)
        dynamic = getattr(chunk, "dynamic", None)
        name = getattr(chunk, "tool_name", None)
        call = self._calls.get(call_id) or _ToolCall(name or "", dynamic is True)
        state = states.get(call.state)
        if state is None:
            raise LocalProtocolError(f"{chunk.kind}: the tool call {call_id!r} {call.state}")
        if name is not None and name != call.name:
            raise LocalProtocolError(
                f"{chunk.kind}: the tool call {call_id!r} is of {call.name!r}, not {name!r}"
            )
        # Clients of `ai` 5 look for the part by this, all others make a second part when it changes.
        if dynamic is not None and (dynamic is True) is not call.dynamic:
            word = "dynamic" if call.dynamic else "not dynamic"
            raise LocalProtocolError(
                f"{chunk.kind}: the tool call {call_id!r} is {word}, and every chunk must say so"
            )
        if isinstance(chunk, ToolApprovalRequest):
            if chunk.approval_id in self._approvals:
                raise LocalProtocolError(
                    f"{chunk.kind}: the approval {chunk.approval_id!r} was requested already"
                )
            self._approvals[chunk.approval_id] = call_id
        call.state = state
        self._calls[call_id] = call
        if state is Call.STREAMING:
            self._open_inputs.add(call_id)
        else:
            self._open_inputs.discard(call_id)

    def _call_id(self, chunk: AnyChunk) -> str:
        if not isinstance(chunk, ToolApprovalResponse):
            return chunk.tool_call_id  # type: ignore[union-attr]
        try:
            return self._approvals[chunk.approval_id]
        except KeyError:
            raise LocalProtocolError(
                f"{chunk.kind}: the approval {chunk.approval_id!r} was never requested"
            ) from None

    def _forget_step(self) -> None:
        """Drop what was opened since the step began, as its parts are gone from the message."""
        self._open_text.clear()
        self._open_reasoning.clear()
        self._open_inputs.clear()
        for call_id in list(islice(self._calls, self._calls_before_step, None)):
            del self._calls[call_id]
        self._approvals = {
            approval_id: call_id for approval_id, call_id in self._approvals.items() if call_id in self._calls
        }
