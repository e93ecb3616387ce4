"""What the server logs, and how: a client's bytes never reach the log as they came.

One logger, `penstock.server`; no handlers are installed, so the program decides where it goes.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator

logger = logging.getLogger("penstock.server")

_LINE_CHARS = 300


def one_line(text: str) -> str:
    """Return `text` as one short printable line: control characters escaped, so that none forges a log record."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return escaped if len(escaped) <= _LINE_CHARS else escaped[:_LINE_CHARS] + "…"


def summary(error: BaseException) -> str:
    """Return an exception, or what is in an exception group, as one printable line."""
    return one_line("; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in _leaves(error)))


def indented_traceback(error: BaseException) -> str:
    """Return the traceback with every line indented and printable: none of its lines can pass for a record."""
    text = "".join(traceback.format_exception(error))
    return "\n".join("  " + one_line(line) for line in text.splitlines())


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for child in error.exceptions:
            yield from _leaves(child)
    else:
        yield error
