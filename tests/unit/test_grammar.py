"""The grammar takes what is legal, refuses everything else without a trace, and can always close what is open."""

from __future__ import annotations

import copy
import timeit
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import UNSET

from penstock.errors import LocalProtocolError
from penstock.wire import grammar as grammar_module
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
from penstock.wire.grammar import TABLE, UNFINISHED, Call, Grammar

ANYWHERE: list[AnyChunk] = [
    MessageMetadata(message_metadata={"k": 1}),
    File(url="data:,", media_type="text/plain"),
    ReasoningFile(url="data:,", media_type="text/plain"),
    SourceUrl(source_id="s", url="https://example.com"),
    SourceDocument(source_id="s", media_type="text/plain", title="t"),
    Custom(kind_="a.b"),
    SteeringMessage(id="m", parts=[]),
    Data(type="data-x", data=None),
    Data(type="data-x", data=None, transient=True),
]


def call(call_id: str = "c", name: str = "search", **fields: Any) -> ToolInputAvailable:
    """A tool call with its input."""
    return ToolInputAvailable(tool_call_id=call_id, tool_name=name, input={}, **fields)


def begin(call_id: str = "c", name: str = "search", **fields: Any) -> ToolInputStart:
    """A tool call whose input follows."""
    return ToolInputStart(tool_call_id=call_id, tool_name=name, **fields)


def more(call_id: str = "c") -> ToolInputDelta:
    """More of its input."""
    return ToolInputDelta(tool_call_id=call_id, input_text_delta="{")


def output(call_id: str = "c", **fields: Any) -> ToolOutputAvailable:
    """Its output."""
    return ToolOutputAvailable(tool_call_id=call_id, output=1, **fields)


def failed(call_id: str = "c", **fields: Any) -> ToolOutputError:
    """Its failure."""
    return ToolOutputError(tool_call_id=call_id, error_text="no", **fields)


def ask(call_id: str = "c", approval_id: str = "a") -> ToolApprovalRequest:
    """The question whether it may run."""
    return ToolApprovalRequest(tool_call_id=call_id, approval_id=approval_id)


def answer(approved: bool = True, approval_id: str = "a") -> ToolApprovalResponse:
    """The answer."""
    return ToolApprovalResponse(approval_id=approval_id, approved=approved)


DENIED = ToolOutputDenied(tool_call_id="c")


def applied(*chunks: AnyChunk) -> Grammar:
    """A grammar after `start` and these."""
    grammar = Grammar()
    for chunk in (Start(message_id="m"), *chunks):
        grammar.apply(chunk)
    return grammar


def state_of(grammar: Grammar) -> Any:
    """All of a grammar's state, comparable."""
    state = copy.deepcopy(vars(grammar))
    state["_calls"] = {
        key: (value.name, value.dynamic, value.state) for key, value in state["_calls"].items()
    }
    return state


LEGAL: dict[str, list[AnyChunk]] = {
    "nothing": [Finish()],
    "stop": [Abort(reason="stop"), Finish()],
    "failure with everything open": [StartStep(), TextStart(id="1"), begin(), Error(error_text="x")],
    "text": [TextStart(id="1"), TextDelta(id="1", delta="a"), TextEnd(id="1"), Finish()],
    "two texts at once": [TextStart(id="1"), TextStart(id="2"), TextEnd(id="1"), TextEnd(id="2")],
    "an id used again after its end": [
        TextStart(id="1"),
        TextEnd(id="1"),
        TextStart(id="1"),
        TextEnd(id="1"),
    ],
    "text and reasoning with one id": [
        TextStart(id="1"),
        ReasoningStart(id="1"),
        ReasoningEnd(id="1"),
        TextEnd(id="1"),
    ],
    "two steps": [StartStep(), FinishStep(), StartStep(), FinishStep(), Finish()],
    "anywhere": [*ANYWHERE, StartStep(), *ANYWHERE, TextStart(id="1"), *ANYWHERE],
    "streamed call": [begin(), more(), more(), call(), output(), Finish()],
    "call at once": [call(), output(), Finish()],
    "call for the client": [StartStep(), call(), FinishStep(), Finish()],
    "output in a later step": [StartStep(), call(), FinishStep(), StartStep(), output(), FinishStep()],
    "preliminary outputs": [
        call(),
        output(preliminary=True),
        output(preliminary=True),
        output(preliminary=False),
    ],
    "failure after a preliminary output": [call(), output(preliminary=True), failed()],
    "finish after a preliminary output": [call(), output(preliminary=True), Finish()],
    "bad input": [
        begin(),
        ToolInputError(tool_call_id="c", tool_name="search", input="{", error_text="x"),
        Finish(),
    ],
    "bad input at once": [
        ToolInputError(tool_call_id="c", tool_name="search", input="{", error_text="x"),
        Finish(),
    ],
    "failure in mid input": [begin(), more(), failed(), Finish()],
    "approval to wait for": [call(), ask(), Finish()],
    "approved": [call(), ask(), answer(), output(), Finish()],
    "approved, preliminary": [call(), ask(), answer(), output(preliminary=True), output()],
    "rejected": [call(), ask(), answer(False), DENIED, Finish()],
    "denied without a record of the answer": [call(), ask(), DENIED, Finish()],
    "dynamic": [begin(dynamic=True), more(), call(dynamic=True), output(dynamic=True), Finish()],
    "not dynamic, said aloud": [begin(dynamic=False), call(), output(dynamic=False), Finish()],
    "reset forgets the step": [
        StartStep(),
        TextStart(id="1"),
        begin(),
        ResetStep(),
        TextStart(id="1"),
        begin(),
    ],
    "reset keeps earlier steps": [
        StartStep(),
        call(),
        FinishStep(),
        StartStep(),
        call("d"),
        ResetStep(),
        output(),
    ],
    "a reset step with open parts ends": [
        StartStep(),
        TextStart(id="1"),
        begin(),
        ResetStep(),
        FinishStep(),
        Finish(),
    ],
    "an approval id of a reset step": [StartStep(), call(), ask(), ResetStep(), call(), ask()],
}

ILLEGAL: dict[str, tuple[list[AnyChunk], AnyChunk, str]] = {
    "second start": ([], Start(), "start is not allowed outside a step"),
    "start in a step": ([StartStep()], Start(), "start is not allowed inside a step"),
    "nested step": ([StartStep()], StartStep(), "start-step is not allowed inside a step"),
    "end of no step": ([], FinishStep(), "finish-step is not allowed outside a step"),
    "reset of no step": ([StartStep(), FinishStep()], ResetStep(), "reset-step is not allowed outside a step"),
    "finish in a step": ([StartStep()], Finish(), "finish is not allowed inside a step"),
    "abort in a step": ([StartStep()], Abort(), "abort is not allowed inside a step"),
    "finish with text": ([TextStart(id="1")], Finish(), "finish while the text part '1' is open"),
    "abort with text": ([TextStart(id="1")], Abort(), "abort while the text part '1' is open"),
    "finish with input": ([begin()], Finish(), "finish while the input of the tool call 'c' is open"),
    "step into text": ([TextStart(id="1")], StartStep(), "start-step while the text part '1' is open"),
    "step out of reasoning": (
        [StartStep(), ReasoningStart(id="1")],
        FinishStep(),
        "finish-step while the reasoning part '1' is open",
    ),
    "step out of input": (
        [StartStep(), begin()],
        FinishStep(),
        "finish-step while the input of the tool call 'c' is open",
    ),
    "after abort": ([Abort()], Data(type="data-x", data=1), "data-x is not allowed after abort, which only finish may follow"),
    "error after abort": ([Abort()], Error(error_text="x"), "error is not allowed after abort, which only finish may follow"),
    "after finish": ([Finish()], Data(type="data-x", data=1), "data-x is not allowed after finish"),
    "second end": ([Finish()], Finish(), "finish is not allowed after finish"),
    "text after an error": ([TextStart(id="1"), Error(error_text="x")], TextDelta(id="1", delta="a"), "text-delta is not allowed after error"),
    "reasoning after an error": (
        [ReasoningStart(id="1"), Error(error_text="x")],
        ReasoningDelta(id="1", delta="a"),
        "reasoning-delta is not allowed after error",
    ),
    "input after an error": ([begin(), Error(error_text="x")], more(), "tool-input-delta is not allowed after error"),
    "delta of nothing": ([], TextDelta(id="1", delta="a"), "text-delta: the text part '1' is not open"),
    "delta of reasoning": ([ReasoningStart(id="1")], TextDelta(id="1", delta="a"), "text-delta: the text part '1' is not open"),
    "delta after end": ([TextStart(id="1"), TextEnd(id="1")], TextDelta(id="1", delta="a"), "text-delta: the text part '1' is not open"),
    "end of nothing": ([TextStart(id="1")], ReasoningEnd(id="1"), "reasoning-end: the reasoning part '1' is not open"),
    "opened twice": ([TextStart(id="1")], TextStart(id="1"), "text-start: the text part '1' is open already"),
    "text of a reset step": ([StartStep(), TextStart(id="1"), ResetStep()], TextDelta(id="1", delta="a"), "text-delta: the text part '1' is not open"),
    "call of a reset step": ([StartStep(), call(), ResetStep()], output(), "tool-output-available: the tool call 'c' was never begun"),
    "approval of a reset step": ([StartStep(), call(), ask(), ResetStep()], answer(), "tool-approval-response: the approval 'a' was never requested"),
    "call id used again": ([call(), output()], begin(), "tool-input-start: the tool call 'c' has ended already"),
    "begun twice": ([begin()], begin(), "tool-input-start: the tool call 'c' does not have all of its input yet"),
    "input twice": ([call()], call(), "tool-input-available: the tool call 'c' has its input already"),
    "input after output": ([call(), output(preliminary=True)], call(), "tool-input-available: the tool call 'c' has an output already"),
    "input error after input": (
        [call()],
        ToolInputError(tool_call_id="c", tool_name="search", input="{", error_text="x"),
        "tool-input-error: the tool call 'c' has its input already",
    ),
    "delta after input": ([begin(), call()], more(), "tool-input-delta: the tool call 'c' has its input already"),
    "delta of no call": ([], more(), "tool-input-delta: the tool call 'c' was never begun"),
    "output of no call": ([], output(), "tool-output-available: the tool call 'c' was never begun"),
    "output before input": ([begin()], output(), "tool-output-available: the tool call 'c' does not have all of its input yet"),
    "output twice": ([call(), output()], output(), "tool-output-available: the tool call 'c' has ended already"),
    "failed twice": ([call(), failed()], failed(), "tool-output-error: the tool call 'c' has ended already"),
    "output without approval": ([call(), ask()], output(), "tool-output-available: the tool call 'c' waits for an approval"),
    "output against a refusal": ([call(), ask(), answer(False)], output(), "tool-output-available: the tool call 'c' was not approved"),
    "denied after approval": ([call(), ask(), answer()], DENIED, "tool-output-denied: the tool call 'c' was approved already"),
    "denied without a question": ([call()], DENIED, "tool-output-denied: the tool call 'c' has its input already"),
    "question before input": ([begin()], ask(), "tool-approval-request: the tool call 'c' does not have all of its input yet"),
    "question after a preliminary output": ([call(), output(preliminary=True)], ask(), "tool-approval-request: the tool call 'c' has an output already"),
    "question twice": ([call(), ask()], ask(approval_id="b"), "tool-approval-request: the tool call 'c' waits for an approval"),
    "approval id twice": ([call(), ask(), call("d")], ask("d"), "tool-approval-request: the approval 'a' was requested already"),
    "answer to nothing": ([call()], answer(), "tool-approval-response: the approval 'a' was never requested"),
    "answered twice": ([call(), ask(), answer()], answer(False), "tool-approval-response: the tool call 'c' was approved already"),
    "another name": ([begin()], call(name="find"), "tool-input-available: the tool call 'c' is of 'search', not 'find'"),
    "dynamic from here on": ([begin()], call(dynamic=True), "tool-input-available: the tool call 'c' is not dynamic, and every chunk must say so"),
    "dynamic, not said": ([call(dynamic=True)], output(), "tool-output-available: the tool call 'c' is dynamic, and every chunk must say so"),
    "dynamic, denied": ([call(dynamic=True)], failed(dynamic=False), "tool-output-error: the tool call 'c' is dynamic, and every chunk must say so"),
}  # fmt: skip


@pytest.mark.parametrize("chunks", LEGAL.values(), ids=LEGAL)
def test_legal_sequences_are_taken(chunks: list[AnyChunk]) -> None:
    grammar = applied(*chunks)
    assert grammar.started
    assert grammar.ended is isinstance(chunks[-1], Finish | Error)


@pytest.mark.parametrize(("before", "chunk", "sentence"), ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_chunks_are_refused_by_a_sentence_and_change_nothing(
    before: list[AnyChunk], chunk: AnyChunk, sentence: str
) -> None:
    grammar = applied(*before)
    state = state_of(grammar)
    with pytest.raises(LocalProtocolError) as caught:
        grammar.apply(chunk)
    assert str(caught.value) == sentence
    assert state_of(grammar) == state


@pytest.mark.parametrize(
    "chunk", [*ANYWHERE, Finish(), Error(error_text="x"), TextStart(id="1"), begin(), more()]
)
def test_start_is_the_first_chunk(chunk: AnyChunk) -> None:
    grammar = Grammar()
    with pytest.raises(LocalProtocolError, match=f"^{chunk.kind} is not allowed before start$"):
        grammar.apply(chunk)
    assert not grammar.started


def test_the_table_has_every_kind() -> None:
    assert set(TABLE) == set(get_args(AnyChunk))


def test_closing_after_a_failure_ends_everything_in_order() -> None:
    grammar = applied(
        call("done"),
        output("done"),
        StartStep(),
        call("available"),
        begin("streaming", dynamic=True),
        call("asked"),
        ask("asked"),
        call("preliminary"),
        output("preliminary", preliminary=True),
        ReasoningStart(id="r"),
        TextStart(id="2"),
        TextStart(id="1"),
    )
    assert grammar.closing_chunks("broken") == [
        TextEnd(id="2"),
        TextEnd(id="1"),
        ReasoningEnd(id="r"),
        ToolOutputError(tool_call_id="available", error_text="broken"),
        ToolOutputError(tool_call_id="streaming", error_text="broken", dynamic=True),
        ToolOutputError(tool_call_id="asked", error_text="broken"),
        ToolOutputError(tool_call_id="preliminary", error_text="broken"),
        FinishStep(),
    ]


def test_closing_after_a_good_end_leaves_calls_to_those_who_answer_them() -> None:
    grammar = applied(
        StartStep(), call("available"), begin("streaming"), call("asked"), ask("asked"), TextStart(id="1")
    )
    assert grammar.closing_chunks(None) == [
        TextEnd(id="1"),
        ToolOutputError(tool_call_id="streaming", error_text=UNFINISHED),
        FinishStep(),
    ]


def test_nothing_is_closed_twice() -> None:
    grammar = applied(StartStep(), TextStart(id="1"), call())
    for chunk in grammar.closing_chunks("x"):
        grammar.apply(chunk)
    assert grammar.closing_chunks("x") == []
    assert Grammar().closing_chunks("x") == []
    assert applied(TextStart(id="1"), Error(error_text="x")).closing_chunks("x") == []


def test_a_suspended_message_goes_on_after_another_start() -> None:
    grammar = applied(StartStep(), call(), ask(), FinishStep(), Finish())
    grammar.resume()
    with pytest.raises(LocalProtocolError, match="before start"):
        grammar.apply(answer())
    for chunk in (Start(message_id="m"), answer(), output(), StartStep(), FinishStep(), Finish()):
        grammar.apply(chunk)
    assert grammar.ended


def test_what_a_message_waits_for_is_known() -> None:
    grammar = applied(call("here", dynamic=True), output("here", dynamic=True))
    waits = [grammar.awaits_client]
    for chunk in (call("there"), ask("there"), answer()):
        grammar.apply(chunk)
        waits.append(grammar.awaits_client)
    assert waits == [False, True, True, False]
    assert grammar.call_state("there") is Call.APPROVED
    assert grammar.call_state("nowhere") is Call.UNKNOWN
    assert grammar.is_dynamic("here")
    assert not grammar.is_dynamic("there")
    assert not grammar.is_dynamic("nowhere")


@pytest.mark.parametrize("grammar", [Grammar(), applied(), applied(Abort()), applied(Error(error_text="x"))])
def test_only_a_finished_message_goes_on(grammar: Grammar) -> None:
    with pytest.raises(LocalProtocolError, match="has not finished"):
        grammar.resume()


def test_a_delta_is_checked_without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas are most of a turn, and cost a set lookup."""
    grammar = applied(TextStart(id="1"), ReasoningStart(id="1"), begin())
    monkeypatch.setattr(grammar_module, "TABLE", {})
    for chunk in (TextDelta(id="1", delta="a"), ReasoningDelta(id="1", delta="a"), more()):
        grammar.apply(chunk)
    delta = TextDelta(id="1", delta="a")
    seconds = min(timeit.repeat(lambda: grammar.apply(delta), number=2_000, repeat=10)) / 2_000
    assert seconds < 2e-6  # ten times what it is, for a busy machine


EVERY: list[AnyChunk] = [
    *ANYWHERE[-2:],
    *(Start(), StartStep(), FinishStep(), ResetStep(), Abort(), Finish(), Error(error_text="x")),
    *(kind(id=id) for kind in (TextStart, TextEnd, ReasoningStart, ReasoningEnd) for id in "12"),
    *(kind(id=id, delta="a") for kind in (TextDelta, ReasoningDelta) for id in "12"),
    *(more(id) for id in "12"),
    *(begin(id, name, dynamic=flag) for id in "12" for name in ("search", "find") for flag in (UNSET, True)),
    *(call(id, name, dynamic=flag) for id in "12" for name in ("search", "find") for flag in (UNSET, True)),
    *(
        ToolInputError(tool_call_id=id, tool_name="search", input=None, error_text="x", dynamic=flag)
        for id in "12"
        for flag in (UNSET, True)
    ),
    *(ask(id, approval_id) for id in "12" for approval_id in "ab"),
    *(answer(approved, approval_id) for approved in (True, False) for approval_id in "ab"),
    *(
        output(id, dynamic=flag, preliminary=early)
        for id in "12"
        for flag in (UNSET, True)
        for early in (True, False)
    ),
    *(failed(id, dynamic=flag) for id in "12" for flag in (UNSET, True)),
    *(ToolOutputDenied(tool_call_id=id) for id in "12"),
]
"""Every kind with every value that matters, of two parts and two calls."""


class PlainMessage:
    """What the grammar's documentation says, in plain words: facts about the message so far, and questions to them."""

    def __init__(self) -> None:
        self.chunks: list[AnyChunk] = []

    def add(self, chunk: AnyChunk) -> None:
        """Remember a legal chunk; one that resets a step removes what the step began, but for its own first chunk."""
        if isinstance(chunk, ResetStep):
            begin = max(index for index, past in enumerate(self.chunks) if isinstance(past, StartStep))
            begun = {past.tool_call_id for past in self.calls() if self.chunks.index(past) > begin}
            self.chunks = [
                past
                for index, past in enumerate(self.chunks)
                if index <= begin
                or (getattr(past, "tool_call_id", None) not in begun and self.is_of_a_call(past, begun))
            ]
        else:
            self.chunks.append(chunk)

    def is_of_a_call(self, chunk: AnyChunk, forgotten: set[str]) -> bool:
        """Whether a chunk within a step is about a call from before it."""
        if isinstance(chunk, ToolApprovalResponse):
            return self.asked(chunk.approval_id) not in forgotten
        return hasattr(chunk, "tool_call_id")

    def count(self, *kinds: type[AnyChunk], **fields: Any) -> int:
        """How many chunks there were of these kinds with these values."""
        return sum(
            isinstance(chunk, kinds) and all(getattr(chunk, key) == value for key, value in fields.items())
            for chunk in self.chunks
        )

    def calls(self) -> list[Any]:
        """The chunk that began each call."""
        first: dict[str, AnyChunk] = {}
        for chunk in self.chunks:
            if isinstance(chunk, ToolInputStart | ToolInputAvailable | ToolInputError):
                first.setdefault(chunk.tool_call_id, chunk)
        return list(first.values())

    def asked(self, approval_id: str) -> str | None:
        """The call that an approval is for."""
        for chunk in self.chunks:
            if isinstance(chunk, ToolApprovalRequest) and chunk.approval_id == approval_id:
                return chunk.tool_call_id
        return None

    def open_parts(self) -> int:
        """How many texts, reasonings and tool inputs are open."""
        started = self.count(TextStart, ReasoningStart)
        ended = self.count(TextEnd, ReasoningEnd)
        return started - ended + sum(self.input_is_open(first.tool_call_id) for first in self.calls())

    def input_is_open(self, call_id: str) -> bool:
        """Whether a call was begun and has neither its input nor an end."""
        closers = (ToolInputAvailable, ToolInputError, ToolOutputError)
        return self.count(ToolInputStart, tool_call_id=call_id) > self.count(*closers, tool_call_id=call_id)

    def in_step(self) -> bool:
        """Whether a step is open."""
        return self.count(StartStep) > self.count(FinishStep)

    def allows(self, chunk: AnyChunk) -> bool:
        """Whether a chunk is legal next."""
        if isinstance(chunk, Start):
            return not self.chunks
        if (
            not self.chunks
            or self.count(Finish, Error)
            or (self.count(Abort) and not isinstance(chunk, Finish))
        ):
            return False
        match chunk:
            case StartStep():
                return not self.in_step() and not self.open_parts()
            case FinishStep():
                return self.in_step() and not self.open_parts()
            case ResetStep():
                return self.in_step()
            case Abort() | Finish():
                return not self.in_step() and not self.open_parts()
            case TextStart(id=id):
                return self.count(TextStart, id=id) == self.count(TextEnd, id=id)
            case TextDelta(id=id) | TextEnd(id=id):
                return self.count(TextStart, id=id) > self.count(TextEnd, id=id)
            case ReasoningStart(id=id):
                return self.count(ReasoningStart, id=id) == self.count(ReasoningEnd, id=id)
            case ReasoningDelta(id=id) | ReasoningEnd(id=id):
                return self.count(ReasoningStart, id=id) > self.count(ReasoningEnd, id=id)
        if isinstance(chunk, ToolApprovalResponse):
            call_id = self.asked(chunk.approval_id)
        else:
            call_id = getattr(chunk, "tool_call_id", None)
        return (
            chunk in ANYWHERE
            or isinstance(chunk, Error)
            or (call_id is not None and self.allows_for_call(chunk, call_id))
        )

    def allows_for_call(self, chunk: Any, call_id: str) -> bool:
        """Whether a chunk about a tool call is legal next."""
        first = next((first for first in self.calls() if first.tool_call_id == call_id), None)
        if first is None:
            return isinstance(chunk, ToolInputStart | ToolInputAvailable | ToolInputError)
        if getattr(chunk, "tool_name", first.tool_name) != first.tool_name:
            return False
        if hasattr(chunk, "dynamic") and (chunk.dynamic is True) != (first.dynamic is True):
            return False
        finals = self.count(ToolInputError, ToolOutputError, ToolOutputDenied, tool_call_id=call_id)
        outputs = self.count(ToolOutputAvailable, tool_call_id=call_id)
        previews = self.count(ToolOutputAvailable, tool_call_id=call_id, preliminary=True)
        if finals or outputs > previews:
            return False
        waiting = self.input_is_open(call_id)
        approvals = [
            past.approval_id
            for past in self.chunks
            if isinstance(past, ToolApprovalRequest) and past.tool_call_id == call_id
        ]
        yes = sum(
            self.count(ToolApprovalResponse, approval_id=approval_id, approved=True)
            for approval_id in approvals
        )
        no = sum(
            self.count(ToolApprovalResponse, approval_id=approval_id, approved=False)
            for approval_id in approvals
        )
        match chunk:
            case ToolInputDelta() | ToolInputAvailable() | ToolInputError():
                return waiting
            case ToolApprovalRequest(approval_id=approval_id):
                return not waiting and not approvals and not outputs and self.asked(approval_id) is None
            case ToolApprovalResponse():
                return not yes and not no
            case ToolOutputAvailable():
                return not waiting and (not approvals or yes > 0)
            case ToolOutputError():
                return True
            case ToolOutputDenied():
                return bool(approvals) and not yes
        return False  # fmt: skip


class GrammarMachine(RuleBasedStateMachine):
    """In every state that legal chunks lead to: each other chunk is taken if it is legal, and refused if not."""

    def __init__(self) -> None:
        super().__init__()
        self.grammar = Grammar()
        self.plain = PlainMessage()
        self.legal: list[AnyChunk] = []

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """Apply a legal chunk: first a kind is drawn, so that those with many values don't crowd out the others."""
        legal: dict[str, list[AnyChunk]] = {}
        for chunk in self.legal:
            if len(self.plain.chunks) > 15 or not isinstance(chunk, Abort | Finish | Error):
                legal.setdefault(chunk.kind, []).append(chunk)
        if legal:
            chunk = data.draw(st.sampled_from(legal[data.draw(st.sampled_from(list(legal)))]))
            self.grammar.apply(chunk)
            self.plain.add(chunk)

    @invariant()
    def agrees_on_every_chunk(self) -> None:
        state = state_of(self.grammar)
        self.legal = [chunk for chunk in EVERY if self.plain.allows(chunk)]
        for chunk in EVERY:
            if chunk in self.legal:
                copy.deepcopy(self.grammar).apply(chunk)
            else:
                with pytest.raises(LocalProtocolError):
                    self.grammar.apply(chunk)
        assert state_of(self.grammar) == state

    @invariant()
    def agrees_on_where_it_is(self) -> None:
        assert self.grammar.started is bool(self.plain.chunks)
        assert self.grammar.ended is bool(self.plain.count(Finish, Error))
        assert self.grammar.ended or self.grammar.in_step is self.plain.in_step()

    @invariant()
    def can_be_closed(self) -> None:
        """Whatever is open, the closing chunks are legal and `finish` after them."""
        if not self.grammar.started or self.grammar.ended:
            return
        for error_text in ("x", None):
            grammar = copy.deepcopy(self.grammar)
            plain = PlainMessage()
            plain.chunks = list(self.plain.chunks)
            for chunk in [*grammar.closing_chunks(error_text), Finish()]:
                assert plain.allows(chunk)
                grammar.apply(chunk)
                plain.add(chunk)
            assert grammar.ended


TestGrammarMachine = GrammarMachine.TestCase
TestGrammarMachine.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
