"""Tables and numbers as docs/performance.md has them."""

from __future__ import annotations

from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    """Write a number with as many digits as say something."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.{digits}f}"


def run_line(data: dict[str, Any]) -> str:
    """Say on what a file of results was measured, with what, when; and what is not in it."""
    machine, versions = data["machine"], dict(data["versions"])
    python = versions.pop("python")
    names = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    text = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mb'] / 1024:.0f} GB, {machine['system']}, "
        f"Python {python}; {data['started_at'][:10]}, {data['minutes']:g} minutes, {len(data['runs'])} runs. "
        f"{names}.\n"
    )
    for name, reason in data["missing"].items():
        text += f"\nNot measured: {name} ({reason}).\n"
    if data["left_out"]:
        names = ", ".join(sorted(set(data["left_out"])))
        text += f"\nLeft out for want of time, in part or as a whole: {names}.\n"
    return text
