"""What a user is told when a producer fails: never the exception's own text, unless the app or the exception's kind says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from penstock.errors import AnswerError, UpstreamError

logger = logging.getLogger("penstock.turns")

ErrorText = Callable[[Exception], str | None]
"""An app's own wording of a failure: the text for the user, or None for the usual one."""

FAILED = "The answer failed. Please try again."


def public_text(group: BaseExceptionGroup[Exception], error_text: ErrorText | None) -> str:
    """Return the text for the user.

    Args:
        group: what was raised; the first of it that has a text counts.
        error_text: the app's own wording.
    """
    for leaf in _leaves(group):
        text = None
        if error_text is not None:
            try:
                text = error_text(leaf)
            except Exception:
                logger.exception("the app's error_text failed")
        if text is None and isinstance(leaf, AnswerError | UpstreamError):
            text = leaf.error_text
        if text is not None:
            return text
    return FAILED


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for child in group.exceptions:
        if isinstance(child, BaseExceptionGroup):
            yield from _leaves(child)
        else:
            yield child
