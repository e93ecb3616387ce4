"""Whether and when an upstream is asked again: a few times, and only while nothing of the answer was written."""

from __future__ import annotations

import random
from collections.abc import Callable

import httpx2

from penstock.errors import (
    UpstreamError,
    UpstreamStatusError,
    UpstreamTruncatedError,
    UpstreamUnreachableError,
)
from penstock.limits import RelayLimits

_STATUSES = frozenset((408, 429))
"""Beside all from 500 on: `529` is Anthropic's word for overloaded. Source: RFC 9110 section 15, RFC 6585 section 4."""


class Retries:
    """The requests of one turn after its first.

    Args:
        limits: how many, and how long the waits are.
        jitter: returns numbers from 0 to 1.
        effects: whether a request may have effects, so that it must not be made twice.
    """

    def __init__(
        self,
        limits: RelayLimits,
        jitter: Callable[[], float] = random.random,
        *,
        effects: bool = False,
    ) -> None:
        self._limits = limits
        self._jitter = jitter
        self._may_pass = _was_not_taken if effects else _may_pass
        self._made = 0

    def next_wait_s(self, failure: UpstreamError) -> float | None:
        """Return how long to wait until the next request; None if there is none after such a failure.

        What the upstream asks for is waited in full, and the jitter comes on top, for it tells all the same.
        """
        limits = self._limits
        if self._made >= limits.retries or not self._may_pass(failure):
            return None
        asked_s = (failure.retry_after_s if isinstance(failure, UpstreamStatusError) else None) or 0.0
        if asked_s > limits.retry_after_max_s:
            return None
        cap_s = limits.backoff_s * 2.0**self._made
        self._made += 1
        return asked_s + cap_s * self._jitter()


def _may_pass(failure: UpstreamError) -> bool:
    """Say whether the same request may do better in a moment."""
    match failure:
        case UpstreamStatusError(status=status):
            return status in _STATUSES or status >= 500
        case UpstreamUnreachableError(__cause__=cause) | UpstreamTruncatedError(__cause__=cause):
            # Refused, reset or closed. A polite end, and a connection that never came about, are not better a second
            # time, and the latter has cost all of `connect_s`.
            return isinstance(cause, httpx2.NetworkError | httpx2.RemoteProtocolError)
    return False


def _was_not_taken(failure: UpstreamError) -> bool:
    """Say whether a request surely did nothing: the upstream asks for it again, or there was no connection."""
    match failure:
        case UpstreamStatusError(retry_after_s=asked_s):
            return asked_s is not None
        case UpstreamUnreachableError(__cause__=cause):
            return isinstance(cause, httpx2.ConnectError)
    return False
