"""The relay's sense of time: signs of life, silence, waits before asking again. In memory, by a clock that jumps."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx2
import pytest
import trio
from trio.testing import MockClock

from penstock import TurnState, open_hub
from penstock.errors import (
    UpstreamError,
    UpstreamSilentError,
    UpstreamStatusError,
    UpstreamTooLongError,
    UpstreamUnansweredError,
)
from penstock.limits import Limits, RelayLimits
from penstock.relay.openai import OpenAIProtocol
from penstock.relay.proof_of_life import ProofOfLife
from penstock.relay.retries import Retries
from penstock.relay.upstream import Target, Upstream
from penstock.testing import user_message
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk, Data, TextDelta

URL = httpx2.URL("http://upstream.test/v1/chat/completions")
DONE = b"data: [DONE]\n\n"


class Pause(float):
    """Seconds in which nothing comes."""


class Answer(NamedTuple):
    """What the upstream does with one request."""

    body: list[bytes | Pause]
    before_head_s: float = 0.0
    status: int = 200
    headers: dict[str, str] = {"content-type": "text/event-stream"}  # noqa: RUF012


class Body(httpx2.AsyncByteStream):
    """The body of an answer, piece by piece."""

    def __init__(self, pieces: list[bytes | Pause]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Pause):
                await trio.sleep(piece)
            else:
                yield piece


class MemoryUpstream(httpx2.AsyncBaseTransport):
    """Gives one answer after another."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked_at: list[float] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer, as the network would: first the request goes out."""
        self.asked_at.append(trio.current_time())
        await request.extensions["trace"]("http11.send_request_headers.started", {})
        answer = self.answers.pop(0)
        await trio.sleep(answer.before_head_s)
        return httpx2.Response(answer.status, headers=answer.headers, stream=Body(answer.body))


class Signed(NamedTuple):
    """A turn that has ended, with the times of its chunks."""

    state: TurnState
    times: list[tuple[float, AnyChunk]]
    error: UpstreamError | None
    compact: list[AnyChunk]
    asked_at: list[float]
    bytes: int

    @property
    def signs(self) -> list[tuple[float, float]]:
        """When there was a sign of life, and the seconds that it said."""
        return [
            (at, chunk.data["elapsedSeconds"])
            for at, chunk in self.times
            if isinstance(chunk, Data) and chunk.type == "data-thinking" and chunk.transient is True
        ]

    @property
    def text(self) -> str:
        """All text."""
        return "".join(chunk.delta for _, chunk in self.times if isinstance(chunk, TextDelta))


def token(text: str, finish_reason: str | None = None) -> bytes:
    """Make an event with a token."""
    choice = {"delta": {"content": text}, "finish_reason": finish_reason}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()


def tokens(count: int, text: str, *, every_s: float) -> list[bytes | Pause]:
    """Make many, each after a pause."""
    return [piece for _ in range(count) for piece in (Pause(every_s), token(text))]


async def relayed(*answers: Answer, **limits: float) -> Signed:
    """Run one turn on an upstream in memory."""
    upstream = MemoryUpstream(*answers)
    raised: list[UpstreamError] = []
    numbers = Limits(relay=RelayLimits(**limits))  # type: ignore[arg-type]

    async def answer(turn: Turn) -> None:
        async with httpx2.AsyncClient(transport=upstream) as client:
            target = Target(OpenAIProtocol("m"), URL, "", None)
            try:
                await Upstream(client, target, numbers).answer(turn)
            except UpstreamError as exc:
                raised.append(exc)
                raise

    async with open_hub() as hub:
        began = trio.current_time()
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        times: list[tuple[float, AnyChunk]] = []
        with turn.follow() as subscription:
            try:
                while True:
                    batch = await subscription.next_batch(100)
                    now = round(trio.current_time() - began, 2)
                    times += [(now, entry.chunk) for entry in batch]
            except trio.EndOfChannel:
                pass
        return Signed(
            await turn.wait_ended(),
            times,
            raised[0] if raised else None,
            turn.compact(),
            [round(at - began, 2) for at in upstream.asked_at],
            turn.bytes,
        )


async def test_a_quiet_upstream_gives_a_sign_every_five_seconds(autojump_clock: MockClock) -> None:
    """From the first moment, before the head and after it, until the first token; and in its silences later."""
    turn = await relayed(
        Answer(
            [Pause(9), token("A"), *tokens(30, "b", every_s=1), Pause(11), token("c", "stop"), DONE],
            before_head_s=12,
        )
    )
    assert turn.state is TurnState.finished
    assert turn.text == "A" + "b" * 30 + "c"
    assert turn.signs == [(5, 5), (10, 10), (15, 15), (20, 20), (56, 5), (61, 10)]
    assert not any(isinstance(chunk, Data) for chunk in turn.compact)


async def test_an_answer_that_comes_at_once_needs_no_sign(autojump_clock: MockClock) -> None:
    """Every chunk begins the count anew, and after the finish reason there is nothing to wait for."""
    turn = await relayed(
        Answer([Pause(4.9), token("a"), Pause(4.9), token("b", "stop"), Pause(100)]), trailer_s=60
    )
    assert turn.text == "ab"
    assert turn.signs == []


@pytest.mark.parametrize(
    ("pause_s", "signs_at"),
    [(0.25, [1, 2, 3, 4, 5, 6, 7, 8, 9]), (3, [3, 6, 9]), (4, [4, 8]), (6, [5, 6])],
)
async def test_heartbeats_are_passed_on(
    pause_s: float, signs_at: list[float], autojump_clock: MockClock
) -> None:
    """As the same signs: comments, pings, named events that say nothing. Once a second at the most."""
    beats = [b": ping\n\n", b"event: heartbeat\ndata: {}\n\n", b": comment\n", b"id: 7\n\n"]
    heartbeats = [piece for n in range(int(9.5 / pause_s)) for piece in (Pause(pause_s), beats[n % 4])]
    turn = await relayed(Answer([*heartbeats, token("a", "stop"), DONE]))
    assert turn.text == "a"
    assert [at for at, _ in turn.signs] == signs_at
    assert all(at == elapsed_s for at, elapsed_s in turn.signs)


async def test_signs_can_be_left_out(autojump_clock: MockClock) -> None:
    """With heartbeats, too. Silence is still noticed."""
    turn = await relayed(
        Answer([Pause(30), b": ping\n\n", Pause(60), token("a"), Pause(100)]), thinking_s=math.inf
    )
    assert turn.signs == []
    assert type(turn.error) is UpstreamSilentError
    assert turn.times[-1][0] == 180


@pytest.mark.parametrize(
    ("answer", "error", "ends_at"),
    [
        (Answer([], before_head_s=1_000), UpstreamUnansweredError, 90),
        (Answer([Pause(1_000)], before_head_s=80), UpstreamSilentError, 170),
        (Answer([Pause(80), b":", Pause(80), b"\n", Pause(1_000)]), UpstreamSilentError, 250),
        (Answer([token("a"), Pause(89), token("b"), Pause(1_000)]), UpstreamSilentError, 179),
    ],
)
async def test_silence_is_counted_from_the_last_byte(
    answer: Answer, error: type[UpstreamError], ends_at: float, autojump_clock: MockClock
) -> None:
    """Of whatever kind it was. The time before the first one has its own limit."""
    turn = await relayed(answer)
    assert type(turn.error) is error
    assert turn.times[-1][0] == ends_at
    assert turn.state is TurnState.failed


async def test_each_limit_is_its_own(autojump_clock: MockClock) -> None:
    """A patient one before the head, and an impatient one after it."""
    turn = await relayed(Answer([Pause(50)], before_head_s=100), first_byte_s=120, silence_s=7)
    assert type(turn.error) is UpstreamSilentError
    assert turn.times[-1][0] == 107


async def test_the_frame_of_an_answer_is_no_token(autojump_clock: MockClock) -> None:
    """A role and a model's name at the beginning: the user has waited since before them."""
    frame = b'data: {"model": "m", "choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    turn = await relayed(Answer([Pause(6), frame, Pause(6), token("a", "stop"), DONE]))
    assert turn.signs == [(5, 5), (10, 10)]


async def test_an_answer_may_take_hours(autojump_clock: MockClock) -> None:
    """There is no limit on the whole."""
    turn = await relayed(Answer([piece for _ in range(100) for piece in (Pause(80), token("a"))] + [DONE]))
    assert turn.text == "a" * 100
    assert turn.times[-1][0] == 8_000


async def test_a_stuck_turn_does_not_fill_the_journal(autojump_clock: MockClock) -> None:
    """An upstream that sends comments for half a day, and the signs of it: some hundred, of which none is replayed."""
    turn = await relayed(
        Answer(
            [piece for _ in range(540) for piece in (Pause(80), b": queued\n\n")] + [token("a", "stop"), DONE]
        )
    )
    assert turn.text == "a"
    assert turn.times[-1][0] == 43_200
    times = [at for at, _ in turn.signs]
    assert 300 < len(times) < 900
    assert turn.bytes < 100_000
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < 0.011 * 43_200 + 5
    assert gaps[:90] == [5] * 90
    assert not any(isinstance(chunk, Data) for chunk in turn.compact)


class CountSteps(trio.abc.Instrument):
    """Counts how often the watching task runs."""

    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self.steps += ProofOfLife.watch.__qualname__ in task.name


async def test_a_token_costs_no_timer(autojump_clock: MockClock) -> None:
    """Of a thousand tokens in forty seconds the watching task sees a few."""
    instrument = CountSteps()
    trio.lowlevel.add_instrument(instrument)
    try:
        turn = await relayed(Answer([*tokens(1_000, "a", every_s=0.04), DONE]))
    finally:
        trio.lowlevel.remove_instrument(instrument)
    assert turn.text == "a" * 1_000
    assert 2 <= instrument.steps <= 12


BUSY = {"retry-after": "20"}


async def test_it_is_asked_again_when_the_upstream_says(autojump_clock: MockClock) -> None:
    """After as long as it asks for and little more, with signs of life meanwhile."""
    turn = await relayed(
        Answer([], status=429, headers=BUSY),
        Answer([], status=503, headers=BUSY),
        Answer([token("a", "stop"), DONE]),
    )
    assert turn.text == "a"
    first, second, third = turn.asked_at
    assert 20 <= second - first <= 20.6
    assert 20 <= third - second <= 21.1
    assert [at for at, _ in turn.signs] == [5, 10, 15, 20, 25, 30, 35, 40]


@pytest.mark.parametrize(("end", "left_after_s"), [([], 5.0), ([DONE], 0.05)])
async def test_a_whole_answer_is_left_though_heartbeats_go_on(
    end: list[bytes], left_after_s: float, autojump_clock: MockClock
) -> None:
    beats = [piece for _ in range(1_000) for piece in (Pause(0.04), b": still here\n\n")]
    turn = await relayed(Answer([token("a", "stop"), *end, *beats]))
    assert turn.state is TurnState.finished
    assert trio.current_time() == pytest.approx(left_after_s, abs=0.05)


async def test_a_whole_answer_in_json_is_waited_for(autojump_clock: MockClock) -> None:
    """A server that does not stream, and sends its head when it knows all, or before."""
    message = b'{"choices":[{"message":{"content":"All."},"finish_reason":"stop"}]}'
    head = {"content-type": "application/json; charset=utf-8"}
    for answer in (
        Answer([message], before_head_s=22, headers=head),
        Answer([Pause(22), message[:9], message[9:]], headers=head),
    ):
        turn = await relayed(answer)
        assert turn.text == "All."
        assert turn.signs[:4] == [(5, 5), (10, 10), (15, 15), (20, 20)]


def statuses(*numbers: int) -> list[UpstreamError]:
    """Make failures."""
    return [UpstreamStatusError("", status=number) for number in numbers]


def test_waits_grow_and_have_an_end() -> None:
    """Each up to twice the one before, after what was asked for, and so many of them."""
    for jitter, factor in ((lambda: 0.0, 0.0), (lambda: 1.0, 1.0)):
        retries = Retries(RelayLimits(retries=3), jitter)
        waits = [retries.next_wait_s(failure) for failure in statuses(500, 529, 429, 500)]
        assert waits == [0.5 * factor, 1.0 * factor, 2.0 * factor, None]
    retries = Retries(RelayLimits(retries=3), lambda: 1.0)
    assert retries.next_wait_s(UpstreamStatusError("", status=429, retry_after_s=30)) == 30.5
    assert retries.next_wait_s(UpstreamStatusError("", status=429, retry_after_s=30.1)) is None


@pytest.mark.parametrize(
    "failure", [*statuses(400, 401, 403, 404, 413, 422), UpstreamTooLongError(""), UpstreamSilentError("")]
)
def test_what_will_not_pass_is_not_tried_again(failure: UpstreamError) -> None:
    """The same request would come to the same."""
    assert Retries(RelayLimits()).next_wait_s(failure) is None


async def test_what_came_while_the_process_was_held_up_is_read_first(autojump_clock: MockClock) -> None:
    """The time is over and bytes are here, both seen in the same pass of the scheduler: it was not silent."""
    for _ in range(20):  # the scheduler shuffles
        turn = await relayed(Answer([token("a"), Pause(90), token("b", "stop"), DONE]))
        assert turn.text == "ab"
