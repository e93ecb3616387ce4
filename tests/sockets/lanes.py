"""Both ways to a client: the fast lane of our own server, and the plain `send` that every other server has."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.asgi import ASGIApp, Receive, Scope, Send

LANES = ("fast lane", "fallback")


def fallback(app: ASGIApp) -> ASGIApp:
    """Hide from an app that its server can be written to directly."""

    async def without(scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).pop("penstock.stream", None)
        await app(scope, receive, send)

    return without


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on both, in that every `chat_app` of its module is behind `fallback` or is not.

    A module takes it with `lane = lanes.lane`, and marks itself or some of its tests with `usefixtures("lane")`.
    """
    name: str = request.param
    make = request.module.chat_app
    if name == "fallback":

        def chat_app(*args: Any, **options: Any) -> ASGIApp:
            return fallback(make(*args, **options))

        monkeypatch.setattr(request.module, "chat_app", chat_app)
    return name
