"""The tool loop: a scripted model, real turns in a real hub, and one run over a socket."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
import trio
import trio.testing

from penstock import AnswerError, Turn, TurnState, UIMessage, open_hub
from penstock.asgi import Receive, Scope, Send
from penstock.errors import ToolError
from penstock.relay.openai_messages import openai_messages
from penstock.relay.tool_schema import ToolSchema
from penstock.relay.tools import BAD_OUTPUT, NO_SUCH_TOOL, Tool, run_tools, tool
from penstock.relay.upstream import open_upstream
from penstock.testing import open_server, user_message
from penstock.turns.approvals import Decision, Verdict
from penstock.turns.error_text import FAILED
from penstock.turns.hub import Hub
from penstock.turns.parts import TOOL_FAILED
from penstock.turns.runner import INTERRUPTED
from penstock.wire.assembly import assemble
from penstock.wire.chunks import (
    AnyChunk,
    Error,
    Finish,
    FinishStep,
    StartStep,
    ToolApprovalRequest,
    ToolInputAvailable,
)
from penstock.wire.grammar import Grammar

Call = tuple[str, Any]
Step = Sequence[Call] | str


class Scripted:
    """A model that says what it is told to: at each step some calls, or some words."""

    def __init__(self, *steps: Step, usage: Sequence[int] = ()) -> None:
        self._steps = list(steps)
        self._usage = list(usage)
        self.asked: list[Sequence[UIMessage]] = []
        self.offered: Sequence[ToolSchema] = ()

    async def ask(self, turn: Turn, messages: Sequence[UIMessage], tools: Sequence[ToolSchema]) -> None:
        self.asked.append(list(messages))
        self.offered = tools
        step = self._steps.pop(0)
        await turn.write(StartStep())
        if isinstance(step, str):
            async with turn.text(id="part-1") as text:
                await text.write(step)
        else:
            for name, given in step:
                call_id = f"call-{len(self.asked)}-{name}"
                await turn.write(ToolInputAvailable(tool_call_id=call_id, tool_name=name, input=given))
        await turn.write(FinishStep())
        finish = Finish(finish_reason="stop" if isinstance(step, str) else "tool-calls")
        if self._usage:
            usage = {"outputTokens": self._usage.pop(0), "totalTokens": 100}
            finish = msgspec.structs.replace(finish, message_metadata={"usage": usage, "model": "m"})
        await turn.write(finish)


class Ran(NamedTuple):
    """What became of a turn, or of one request's part of it."""

    state: TurnState
    chunks: list[AnyChunk]
    message: UIMessage

    @property
    def calls(self) -> dict[str, dict[str, Any]]:
        """The tool parts, by the tool's name."""
        return {
            part["type"].removeprefix("tool-"): part for part in self.message.parts if "toolCallId" in part
        }


Ends = Callable[[Hub], Awaitable[object]]


async def run(
    model: Scripted,
    *tools: Tool | Callable[..., Any],
    messages: Sequence[UIMessage] = (),
    hub: Hub | None = None,
    meanwhile: Ends | None = None,
    **options: Any,
) -> Ran:
    """Run a turn to its end, and check that what it left is legal for a client."""
    if hub is None:
        async with open_hub() as hub:
            return await run(model, *tools, messages=messages, hub=hub, meanwhile=meanwhile, **options)

    async def answer(turn: Turn) -> None:
        await run_tools(turn, model, tools, **options)

    handle = await hub.start_turn("chat", answer, messages or [user_message("Go")])
    if meanwhile is not None:
        await meanwhile(hub)
    state = await handle.wait_ended()
    chunks = [entry.chunk for entry in handle._tail.entries][handle.first_entry :]
    if not messages:
        grammar = Grammar()
        for chunk in chunks:
            grammar.apply(chunk)
        assert grammar.ended
        for version in (5, 6, 7):
            assemble(chunks, handle.id, version)
    return Ran(state, chunks, handle.message())


async def get_weather(city: str) -> str:
    """The weather now."""
    return f"Rain in {city}"


async def test_an_answer_without_calls_is_the_answer() -> None:
    model = Scripted("Hello.")
    ran = await run(model, get_weather)
    assert (ran.state, ran.message.text) == (TurnState.finished, "Hello.")
    assert ran.chunks[-1] == Finish(finish_reason="stop")
    assert [schema.name for schema in model.offered] == ["get_weather"]
    ((question,),) = model.asked
    assert question.text == "Go"


async def test_a_call_is_run_and_the_model_is_told() -> None:
    model = Scripted([("get_weather", {"city": "Bern"})], "Take an umbrella.")
    ran = await run(model, get_weather)
    assert ran.state is TurnState.finished
    assert ran.calls["get_weather"]["output"] == "Rain in Bern"
    assert ran.message.text == "Take an umbrella."
    # The last answer's reason is the turn's.
    assert ran.chunks[-1] == Finish(finish_reason="stop")
    assert openai_messages(model.asked[1])[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call-1-get_weather",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Bern"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call-1-get_weather", "content": "Rain in Bern"},
    ]


async def test_what_the_answers_cost_is_added_up() -> None:
    """Also if two cost the same; and over two requests."""
    same = [("get_weather", {"city": "Bern"})]
    ran = await run(Scripted(same, same, "Rain.", usage=[7, 7, 7]), get_weather)
    assert ran.message.metadata["usage"] == {"outputTokens": 21, "totalTokens": 300}
    kit: list[Any] = [tool(get_weather, approval=lambda given: given["city"] == "Bergen")]
    calls = [[("get_weather", {"city": city})] for city in ("Bern", "Bergen")]
    async with open_hub() as hub:
        first = await run(Scripted(*calls, usage=[1, 20]), *kit, hub=hub, messages=[QUESTION])
        assert first.message.metadata == {"usage": {"outputTokens": 21, "totalTokens": 200}, "model": "m"}
        messages = [QUESTION, decided(first.message, get_weather=True)]
        then = await run(Scripted("Done.", usage=[300]), *kit, hub=hub, messages=messages)
    assert then.state is TurnState.finished
    assert then.message.metadata["usage"] == {"outputTokens": 321, "totalTokens": 300}


async def test_calls_of_a_step_overlap_up_to_a_cap(autojump_clock: trio.testing.MockClock) -> None:
    running, most = 0, 0

    async def wait(seconds: float) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(seconds)
        running -= 1
        return trio.current_time()

    calls = {f"wait{number}": tool(wait, name=f"wait{number}") for number in range(4)}
    asks = [(name, {"seconds": 10.0}) for name in calls]
    began = trio.current_time()
    await run(Scripted(asks, "Done."), *calls.values())
    assert (most, trio.current_time() - began) == (4, 10)
    most = 0
    began = trio.current_time()
    ran = await run(Scripted(asks, "Done."), *calls.values(), max_parallel=2)
    assert (most, trio.current_time() - began) == (2, 20)
    # In the message they stand in the order in which they were called.
    assert list(ran.calls) == list(calls)


async def test_an_input_that_does_not_fit_is_the_models_to_mend() -> None:
    model = Scripted(
        [("get_weather", {"city": 7}), ("no_such", {})], [("get_weather", {"city": "Bern"})], "Done."
    )
    ran = await run(model, get_weather)
    assert ran.state is TurnState.finished
    told = [message["content"] for message in openai_messages(model.asked[1]) if message["role"] == "tool"]
    assert told == ["The input does not fit: Expected `str`, got `int` - at `$.city`", NO_SUCH_TOOL]
    assert ran.calls["get_weather"]["output"] == "Rain in Bern"

    ran = await run(Scripted([("get_weather", {"x" * 10_000: 1})], "Done."), get_weather)
    assert len(ran.calls["get_weather"]["errorText"]) == 500


async def test_a_failing_tool_fails_its_call_and_hides_why(caplog: pytest.LogCaptureFixture) -> None:
    async def secret() -> None:
        raise LookupError("a private detail")

    async def on_purpose() -> None:
        raise ToolError("There is no such city.")

    async def in_a_nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_purpose)
            nursery.start_soon(trio.sleep_forever)

    def in_a_thread() -> None:
        raise ToolError("Not there either.")

    async def slow() -> None:
        with trio.fail_after(0):
            await trio.sleep_forever()

    failing = [secret, on_purpose, in_a_nursery, in_a_thread, slow]
    model = Scripted([(function.__name__, {}) for function in failing], "Sorry.")
    ran = await run(model, *failing)
    assert ran.state is TurnState.finished
    assert {name: (call["state"], call["errorText"]) for name, call in ran.calls.items()} == {
        "secret": ("output-error", TOOL_FAILED),
        "on_purpose": ("output-error", "There is no such city."),
        "in_a_nursery": ("output-error", "There is no such city."),
        "in_a_thread": ("output-error", "Not there either."),
        "slow": ("output-error", TOOL_FAILED),
    }
    assert "private" not in str(ran.chunks)
    assert "private" not in str(openai_messages(model.asked[1]))
    assert "a private detail" in caplog.text


async def test_a_tool_can_fail_the_turn() -> None:
    async def give_up() -> None:
        raise AnswerError("Your account is empty.")

    calls: list[Call] = [("give_up", {}), ("sleep", {"seconds": 60.0})]
    ran = await run(Scripted(calls), give_up, tool(trio.sleep))
    assert ran.state is TurnState.failed
    assert ran.chunks[-1] == Error(error_text="Your account is empty.")
    assert ran.calls["sleep"]["errorText"] == INTERRUPTED


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


class Forecast(msgspec.Struct):
    degrees: list[float]
    by_day: dict[int, str] = {}


@pytest.mark.parametrize(
    ("value", "output"),
    [
        (None, None),
        (Forecast([1.5], {1: "rain"}), {"degrees": [1.5], "by_day": {"1": "rain"}}),
        ({"a": [1, 2**70]}, {"a": [1, 2**70]}),
        (float("nan"), BAD_OUTPUT),
        pytest.param(object(), BAD_OUTPUT, id="object"),
        ("x" * (300 << 10), BAD_OUTPUT),
        (2**2000, BAD_OUTPUT),
        ({"__proto__": 1}, BAD_OUTPUT),
        (ENDLESS, BAD_OUTPUT),
    ],
    ids=str,
)
async def test_an_output_is_json_or_an_error(value: Any, output: Any) -> None:
    async def give() -> Any:
        return value

    ran = await run(Scripted([("give", {})], "Done."), give)
    assert ran.state is TurnState.finished
    assert ran.calls["give"].get("output", ran.calls["give"].get("errorText")) == output


async def test_a_tool_can_not_change_what_the_journal_has_of_its_input() -> None:
    async def sort(them: list[Any]) -> list[Any]:
        them[0].clear()
        return them

    ran = await run(Scripted([("sort", {"them": [[2, 1]]})], "Done."), sort)
    assert ran.calls["sort"]["input"] == {"them": [[2, 1]]}
    assert ran.calls["sort"]["output"] == [[]]


# --- approvals ---


def decided(message: UIMessage, **approved: bool) -> UIMessage:
    """Return the message as a client has it once its user has decided, by the tools' names."""
    copy = msgspec.json.decode(msgspec.json.encode(message), type=UIMessage)
    for part in copy.parts:
        name = part["type"].removeprefix("tool-")
        if name in approved and part["state"] == "approval-requested":
            part["state"] = "approval-responded"
            part["approval"] = {"id": part["approval"]["id"], "approved": approved[name]}
            part["input"] = {"name": "something else"}
    return copy


class Notes:
    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete_note(self, name: str) -> bool:
        """Delete a note."""
        self.deleted.append(name)
        return True


QUESTION = user_message("Delete the plans.", id="question")
DELETE: Step = [("delete_note", {"name": "plans"}), ("get_weather", {"city": "Bern"})]


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_suspends_the_turn_and_the_next_request_goes_on(approved: bool) -> None:
    notes = Notes()
    kit: list[Any] = [tool(notes.delete_note, approval="It is gone then."), get_weather]
    async with open_hub() as hub:
        first = await run(Scripted(DELETE), *kit, hub=hub, messages=[QUESTION])
        assert first.state is TurnState.suspended
        assert first.calls["delete_note"]["state"] == "approval-requested"
        assert first.calls["delete_note"]["approval"]["requestReason"] == "It is gone then."
        # What needs no approval has run meanwhile.
        assert first.calls["get_weather"]["output"] == "Rain in Bern"
        assert not notes.deleted

        model = Scripted("So be it.")
        copy = decided(first.message, delete_note=approved)
        then = await run(model, *kit, hub=hub, messages=[QUESTION, copy])
    assert (then.state, then.message.id) == (TurnState.finished, first.message.id)
    assert then.message.text == "So be it."
    # The input is the journal's: a client decides about it, and can't put another in its place.
    assert notes.deleted == (["plans"] if approved else [])
    told = [message["content"] for message in openai_messages(model.asked[0]) if message["role"] == "tool"]
    assert told == ["true" if approved else "The user did not allow this tool call.", "Rain in Bern"]
    assert [message.role for message in model.asked[0]] == ["user", "assistant"]


async def test_the_model_is_not_asked_before_all_is_decided() -> None:
    notes = Notes()
    other = tool(notes.delete_note, name="delete_other", approval=True)
    kit: list[Any] = [tool(notes.delete_note, approval=True), other]
    both: Step = [("delete_note", {"name": "plans"}), ("delete_other", {"name": "shopping"})]
    async with open_hub() as hub:
        first = await run(Scripted(both), *kit, hub=hub, messages=[QUESTION])
        copy = decided(first.message, delete_note=True)
        then = await run(Scripted(), *kit, hub=hub, messages=[QUESTION, copy])
        assert then.state is TurnState.suspended
        assert notes.deleted == ["plans"]
        copy = decided(then.message, delete_other=True)
        last = await run(Scripted("Gone."), *kit, hub=hub, messages=[QUESTION, copy])
    assert (last.state, last.message.text) == (TurnState.finished, "Gone.")
    assert notes.deleted == ["plans", "shopping"]


async def test_an_approved_tool_that_is_no_more_fails_its_call() -> None:
    async with open_hub() as hub:
        first = await run(
            Scripted(DELETE), tool(Notes().delete_note, approval=True), hub=hub, messages=[QUESTION]
        )
        copy = decided(first.message, delete_note=True)
        then = await run(Scripted("Sorry."), hub=hub, messages=[QUESTION, copy])
    assert then.state is TurnState.finished
    assert then.calls["delete_note"]["errorText"] == NO_SUCH_TOOL


async def test_a_predicate_decides_call_by_call() -> None:
    """Of the arguments as they were decoded. If it fails, so does the call."""

    async def pay(amount: int, to: str = "us") -> int:
        return amount

    def risky(given: Mapping[str, Any]) -> bool:
        return bool(1 // given["amount"] > 1 or given["to"] != "us" or given["amount"] > 100)

    async def paid(**given: Any) -> Ran:
        return await run(Scripted([("pay", given)], "Paid."), tool(pay, approval=risky))

    assert (await paid(amount=7)).calls["pay"]["output"] == 7
    for given in ({"amount": 101}, {"amount": 7, "to": "them"}):
        asked = await paid(**given)
        assert asked.state is TurnState.suspended
        assert asked.calls["pay"]["state"] == "approval-requested"
    failed = await paid(amount=0)
    assert failed.calls["pay"]["errorText"] == TOOL_FAILED

    async def too_late(given: Mapping[str, Any]) -> bool:
        return True

    with pytest.raises(TypeError, match="is not async"):
        tool(pay, approval=too_late)  # type: ignore[arg-type]


@pytest.mark.parametrize("decision", [Decision.approved, Decision.denied, Decision.expired])
async def test_an_approval_can_be_waited_for_inside_the_stream(
    decision: Decision, autojump_clock: trio.testing.MockClock
) -> None:
    notes = Notes()

    async def decide(hub: Hub) -> None:
        await trio.sleep(1)
        if decision is not Decision.expired:
            turn = await hub.newest_turn("chat")
            assert turn is not None
            (request,) = [
                entry.chunk for entry in turn._tail.entries if isinstance(entry.chunk, ToolApprovalRequest)
            ]
            await hub.decide("chat", request.approval_id, Verdict(decision))

    asks = tool(notes.delete_note, approval=True, approval_wait_s=60)
    # The one that waits takes no other's place.
    ran = await run(Scripted(DELETE, "Done."), asks, get_weather, meanwhile=decide, max_parallel=1)
    assert ran.state is TurnState.finished
    assert notes.deleted == (["plans"] if decision is Decision.approved else [])
    assert ran.calls["get_weather"]["output"] == "Rain in Bern"


# --- limits and ends ---


async def test_steps_are_limited_and_the_last_calls_still_run() -> None:
    model = Scripted(*[[("get_weather", {"city": str(number)})] for number in range(3)])
    ran = await run(model, get_weather, max_steps=3)
    assert ran.state is TurnState.finished
    assert len(model.asked) == 3
    assert ran.calls["get_weather"]["output"] == "Rain in 2"
    assert ran.chunks[-1] == Finish(finish_reason="tool-calls")


async def test_a_stop_ends_the_tools_that_run(autojump_clock: trio.testing.MockClock) -> None:
    ends: list[str] = []

    async def forever() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append("async")

    async def stop(hub: Hub) -> None:
        await trio.sleep(1)
        assert await hub.stop("chat") is TurnState.stopped

    calls: list[Call] = [("forever", {}), ("get_weather", {"city": "Bern"})]
    ran = await run(Scripted(calls), forever, get_weather, meanwhile=stop)
    assert ran.state is TurnState.stopped
    assert ends == ["async"]
    assert ran.calls["forever"]["errorText"] == INTERRUPTED
    assert ran.calls["get_weather"]["output"] == "Rain in Bern"


async def test_a_sync_tool_runs_in_a_thread_and_a_stop_does_not_wait_for_it() -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def block() -> int:
        entered.set()
        leave.wait(10)
        left.set()
        return threading.get_ident()

    def ident() -> int:
        return threading.get_ident()

    ran = await run(Scripted([("ident", {})], "Done."), ident)
    assert ran.calls["ident"]["output"] != threading.get_ident()

    async def stop(hub: Hub) -> None:
        await trio.to_thread.run_sync(entered.wait, 10)
        with trio.fail_after(2):
            assert await hub.stop("chat") is TurnState.stopped
        assert not left.is_set()
        leave.set()

    ran = await run(Scripted([("block", {})]), block, meanwhile=stop)
    assert ran.calls["block"]["errorText"] == INTERRUPTED
    assert await trio.to_thread.run_sync(left.wait, 10)


async def test_the_models_error_is_the_turns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        ran = await run(Scripted([("get_weather", {"city": "Bern"})]), get_weather)  # and no second step
    assert ran.state is TurnState.failed
    assert ran.chunks[-1] == Error(error_text=FAILED)
    assert ran.calls["get_weather"]["output"] == "Rain in Bern"


async def test_calls_that_are_not_the_loops_are_left_alone() -> None:
    """Those that the producer left to the client before, and those that the model's provider runs."""

    class Provider(Scripted):
        async def ask(self, turn: Turn, messages: Sequence[UIMessage], tools: Sequence[ToolSchema]) -> None:
            async with turn.tool_call("web_search", {}, provider_executed=True):
                pass
            await super().ask(turn, messages, tools)

    async def answer(turn: Turn) -> None:
        async with turn.tool_call("ask_client", {}):
            pass
        model = Provider([("get_weather", {"city": "Bern"})], "Done.")
        await run_tools(turn, model, [get_weather])
        assert [call.name for call in turn.open_calls()] == ["ask_client"]

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [QUESTION])
        assert await turn.wait_ended() is TurnState.suspended
        parts = [part for part in turn.message().parts if "toolCallId" in part]
    assert [(part["type"], part["state"]) for part in parts] == [
        ("tool-ask_client", "input-available"),
        ("tool-web_search", "input-available"),
        ("tool-get_weather", "output-available"),
        ("tool-web_search", "input-available"),
    ]


async def test_names_and_numbers_are_checked_before_anything_is_asked() -> None:
    async def answer(turn: Turn) -> None:
        for tools, options in [
            ([get_weather, get_weather], {}),
            ([], {"max_steps": 0}),
            ([], {"max_parallel": 0}),
        ]:
            with pytest.raises(ValueError, match=r"two tools have the name get_weather|at least 1"):
                await run_tools(turn, Scripted(), tools, **options)

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [QUESTION])
        assert await turn.wait_ended() is TurnState.finished


async def test_an_upstream_that_is_no_model_is_not_asked() -> None:
    async with open_upstream("http://127.0.0.1:9", protocol="chat", api_key="") as upstream:

        async def answer(turn: Turn) -> None:
            with pytest.raises(ValueError, match="the protocol chat is offered no tools"):
                await run_tools(turn, upstream, [get_weather])

        async with open_hub() as hub:
            turn = await hub.start_turn("chat", answer, [QUESTION])
            assert await turn.wait_ended() is TurnState.finished


# --- over a socket ---


def completion(*deltas: Mapping[str, Any], finish_reason: str, read: int) -> bytes:
    """Make the body of a streamed chat completion: an event for each delta."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish_reason})
    events: list[dict[str, Any]] = [{"model": "m", "choices": [choice]} for choice in choices]
    usage = {"prompt_tokens": read, "completion_tokens": 1, "total_tokens": read + 1}
    events.append({"choices": [], "usage": usage})
    lines = [*(msgspec.json.encode(event).decode() for event in events), "[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def fragment(index: int, arguments: str, **begins: str) -> dict[str, Any]:
    """Make a delta with a piece of one tool call, which begins if it has an id and a name."""
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if begins:
        call |= {"id": begins["id"], "type": "function"}
        call["function"]["name"] = begins["name"]
    return {"tool_calls": [call]}


TWO_CALLS = completion(
    {"reasoning_content": "I have "},
    {"reasoning_content": "a tool."},
    {"content": "I will look."},
    fragment(0, "", id="call_0", name="get_weather"),
    fragment(1, '{"ci', id="call_1", name="get_weather"),
    fragment(0, '{"city": "Be'),
    fragment(1, 'ty": "Bergen"}'),
    fragment(0, 'rn"}'),
    finish_reason="tool_calls",
    read=10,
)
ONE_MORE = completion(
    {"reasoning": "Another one."},
    fragment(0, '{"city": "Basel"}', id="call_0", name="get_weather"),
    finish_reason="tool_calls",
    read=20,
)
WORDS = completion({"content": "Rain "}, {"content": "everywhere."}, finish_reason="stop", read=30)


async def test_a_chat_completions_server_is_asked_until_it_answers() -> None:
    """Its calls come in fragments, and it numbers them anew in each answer."""
    bodies: list[Any] = []
    answers = [TWO_CALLS, ONE_MORE, WORDS]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = bytearray()
        more = True
        while more:
            piece: Any = await receive()
            body += piece["body"]
            more = piece["more_body"]
        bodies.append(msgspec.json.decode(body))
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answers[len(bodies) - 1], "more_body": False})

    async with open_server(app) as url, open_upstream(url, "m", api_key="") as upstream, open_hub() as hub:

        async def answer(turn: Turn) -> None:
            await run_tools(turn, upstream, [get_weather])

        turn = await hub.start_turn("chat", answer, [QUESTION])
        assert await turn.wait_ended() is TurnState.finished
        message = turn.message()
        chunks = [entry.chunk for entry in turn._tail.entries]
    assert message.text == "I will look.Rain everywhere."
    calls = [part for part in message.parts if "toolCallId" in part]
    assert [call["output"] for call in calls] == ["Rain in Bern", "Rain in Bergen", "Rain in Basel"]
    assert len({call["toolCallId"] for call in calls}) == 3
    assert chunks[-1] == Finish(finish_reason="stop")
    assert message.metadata["usage"] == {"inputTokens": 60, "outputTokens": 3, "totalTokens": 63}
    # What went over the wire: the tool each time, and the conversation as it grew.
    (offered,) = bodies[0]["tools"]
    assert bodies[1]["tools"] == bodies[2]["tools"] == [offered]
    assert offered["type"] == "function"
    assert offered["function"]["name"] == "get_weather"
    assert offered["function"]["description"] == "The weather now."
    assert offered["function"]["parameters"]["required"] == ["city"]
    roles = [[said["role"] for said in body["messages"]] for body in bodies]
    assert roles[0] == ["user"]
    assert roles[1] == ["user", "assistant", "tool", "tool"]
    assert roles[2] == [*roles[1], "assistant", "tool"]
    assert bodies[2]["messages"][: len(roles[1])] == bodies[1]["messages"]
    answered = {
        said["tool_call_id"]: said["content"] for said in bodies[2]["messages"] if said["role"] == "tool"
    }
    assert answered == {call["toolCallId"]: call["output"] for call in calls}
