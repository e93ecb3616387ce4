"""A hub that drains: its turns end, and whoever opened it goes on."""

from __future__ import annotations

import pytest
import trio
from quart_trio import QuartTrio
from trio.testing import MockClock

from penstock import Penstock, Turn, TurnState, UIMessage, open_hub
from penstock.testing import open_server, user_message
from penstock.turns.hub import HubFullError


def question() -> list[UIMessage]:
    """A user's message."""
    return [user_message("Hello")]


async def for_ever(turn: Turn) -> None:
    """Answer, and never end."""
    await turn.data("x", 1)
    await trio.sleep_forever()


async def test_it_ends_what_runs_and_not_its_caller(autojump_clock: MockClock) -> None:
    async with open_hub() as hub:
        turn = await hub.start_turn("c", for_ever, question())
        began = trio.current_time()
        await hub.drain(5)
        assert trio.current_time() - began == 5
        await trio.sleep(1)
        assert turn.state is TurnState.lost
        # What is over can be looked at to the end.
        found = await hub.turn(turn.id)
        assert found is not None
        assert found.state is TurnState.lost
        with pytest.raises(HubFullError):
            await hub.start_turn("d", for_ever, question())
        await hub.drain(5)
        went_on = True
    assert went_on


async def test_the_app_behind_is_shut_down_as_ever() -> None:
    told = []
    app = QuartTrio(__name__)
    Penstock(app, for_ever)

    @app.after_serving
    async def close() -> None:
        await trio.sleep(0.01)
        told.append("closed")

    async with open_server(app):
        pass
    assert told == ["closed"]
