"""On-close callbacks: each runs exactly once, last registered first, with a deadline of its own.

A callback may be a plain or an async function of one argument, the `CloseReason`. It runs shielded from whatever
closed the connection, because it is there to clean up, and for at most `callback_s`, because nobody waits for ever. What
it raises is logged, counted and kept; the others still run.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from penstock.closing import CloseReason
from penstock.errors import ConnectionClosedError
from penstock.metrics import Metrics

logger = logging.getLogger("penstock.connections")

Callback: TypeAlias = Callable[[CloseReason], Awaitable[None] | None]


class Registration:
    """A registered callback. `unregister` takes it back."""

    __slots__ = ("_callback", "_callbacks")

    def __init__(self, callbacks: OnClose, callback: Callback) -> None:
        self._callbacks = callbacks
        self._callback = callback

    def unregister(self) -> bool:
        """Take the callback back. False if it has run, is running, or was taken back before."""
        if self not in self._callbacks._pending:
            return False
        del self._callbacks._pending[self]
        return True


class OnClose:
    """The callbacks of one connection."""

    __slots__ = ("_callback_s", "_metrics", "_pending", "_reason", "errors")

    def __init__(self, callback_s: float, metrics: Metrics) -> None:
        self._callback_s = callback_s
        self._metrics = metrics
        self._pending: dict[Registration, None] = {}
        self._reason: CloseReason | None = None
        self.errors: list[Exception] = []
        """What callbacks raised, and a `trio.TooSlowError` for each that was cut off."""

    def register(self, callback: Callback) -> Registration:
        """Register a callback.

        Raises:
            ConnectionClosedError: if the callbacks run already or have run; this one never would.
        """
        if self._reason is not None:
            raise ConnectionClosedError(self._reason)
        registration = Registration(self, callback)
        self._pending[registration] = None
        return registration

    async def run(self, reason: CloseReason) -> None:
        """Run what is registered, at most `callback_s` each. No checkpoint where none of them awaits."""
        self._reason = reason
        while self._pending:
            registration, _ = self._pending.popitem()
            try:
                result = registration._callback(reason)
                if inspect.isawaitable(result):
                    with trio.fail_after(self._callback_s, shield=True):
                        await result
            except Exception as exc:
                logger.error("an on-close callback failed", exc_info=exc)
                self._metrics.count("callbacks_failed")
                self.errors.append(exc)
