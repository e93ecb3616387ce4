"""What a store remembers of turns that it was asked for, so that it need not ask again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

T = TypeVar("T")


def keep(held: OrderedDict[str, T], key: str, value: T, count: int) -> None:
    """Put something into a dictionary of so many, from which what was put there first goes."""
    held[key] = value
    held.move_to_end(key)
    if len(held) > count:
        held.popitem(last=False)
