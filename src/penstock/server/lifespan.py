"""The ASGI lifespan of one app: startup before the first connection, shutdown after the last.

An app that does not know lifespan (it raises or returns before it answers `startup`) is served without one, as ASGI
asks. One that started and then raises has lost what it opened: the error ends the server, so that a supervisor sees it.
Hypercorn 0.18 logs that and serves on, and fails where the app returns early (`test_server_lifespan.py`).
"""

from __future__ import annotations

from typing import Any

import trio

from penstock.asgi import ASGIApp
from penstock.limits import ServerLimits
from penstock.server.apps import Message
from penstock.server.log import logger, one_line, summary


class Lifespan:
    """Run `run` in a nursery; `start` and `stop` are its two questions to the app."""

    def __init__(self, app: ASGIApp, *, going_away: Message, limits: ServerLimits) -> None:
        self.state: dict[str, Any] = {}
        self.failure: str | None = None
        self._app = app
        self._going_away = going_away
        self._limits = limits
        self._asked = {"startup": trio.Event(), "shutdown": trio.Event()}
        self._answered = {"startup": trio.Event(), "shutdown": trio.Event()}
        self._told: list[str] = []

    async def run(self) -> None:
        """Run the app with its lifespan scope, to its end."""
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
            "extensions": {"penstock.server": self._going_away},
        }
        try:
            await self._app(scope, self._receive, self._send)
        except* Exception as error:
            if self._answered["startup"].is_set():
                raise
            logger.info("the app has no lifespan, or failed in it: %s", summary(error))
        finally:
            for answered in self._answered.values():
                answered.set()

    async def start(self) -> bool:
        """Ask the app to start; wait `app_start_s` at most. Returns whether it did; if not, see `failure`."""
        self._asked["startup"].set()
        with trio.move_on_after(self._limits.app_start_s) as patience:
            await self._answered["startup"].wait()
        if patience.cancelled_caught:
            self.failure = f"the app did not start within {self._limits.app_start_s:g} s"
        return self.failure is None

    async def stop(self) -> None:
        """Ask the app to stop; wait `app_stop_s` at most. What goes wrong is logged."""
        self._asked["shutdown"].set()
        with trio.move_on_after(self._limits.app_stop_s) as patience:
            await self._answered["shutdown"].wait()
        if patience.cancelled_caught:
            logger.error("the app did not stop within %g s", self._limits.app_stop_s)

    async def _receive(self) -> Message:
        for phase, asked in self._asked.items():
            if phase not in self._told:
                await asked.wait()
                self._told.append(phase)
                return {"type": f"lifespan.{phase}"}
        await trio.sleep_forever()

    async def _send(self, message: Message) -> None:
        _, phase, outcome = message["type"].split(".")
        if outcome == "failed":
            text = one_line(message.get("message", "")) or "no reason given"
            if phase == "startup":
                self.failure = text
            else:
                logger.error("the app failed to stop: %s", text)
        self._answered[phase].set()
        await trio.lowlevel.checkpoint()
