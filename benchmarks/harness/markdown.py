"""Tables and numbers as docs/performance.md has them."""

from __future__ import annotations


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    """Write a number with as many digits as say something."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.{digits}f}"
