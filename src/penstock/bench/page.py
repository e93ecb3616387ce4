"""The shell of a report's page, and the pieces that it is made of: plots, tables.

The page is whole in itself. It has no scripts, asks the network for nothing, and forbids both to itself. All pieces take
plain text and escape it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources

from penstock.bench.plot import DARK, FONT, LIGHT, STYLE, Bar, Colours, Line, bar_plot, escape, line_plot
from penstock.bench.scale import Axis

WIDE = (1152, 420)
HALF = (560, 300)
_NARROW = (350, 300)
"""A phone's: the same plot drawn smaller would have letters too small to read."""


def document(title: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: as text.
        body: as HTML.
    """
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="content-security-policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    def variables(colours: Colours, good: str, bad: str, warn: str) -> str:
        return (
            f":root{{--ground:{colours.ground};--ink:{colours.ink};--soft:{colours.soft};--rule:{colours.rule};"
            f"--accent:{colours.lines[0]};--good:{good};--bad:{bad};--warn:{warn}}}"
        )

    light = variables(LIGHT, "#1f7a3d", "#b42318", "#d9822b")
    dark = variables(DARK, "#63c483", "#ff8b80", "#d9822b")
    sheet = resources.files("penstock.bench").joinpath("report.css").read_text(encoding="utf-8")
    fonts = f":root{{--font:{FONT}}}"
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}{fonts}\n{sheet}{STYLE}"


def lines(
    title: str, description: str, lines: Sequence[Line], x: Axis, y: Axis, size: tuple[int, int]
) -> str:
    """Return a plot of lines that is `size` where there is room."""

    def draw(width: int, height: int) -> str:
        return line_plot(title, description, lines, x=x, y=y, width=width, height=height, standalone=False)

    return figure(draw, size)


def bars(title: str, label: str, bars: Sequence[Bar]) -> str:
    """Return a plot of bars that is half a page wide where there is room."""
    said = ", ".join(f"{bar.name}: {bar.text}" for bar in bars)

    def draw(width: int, _height: int) -> str:
        return bar_plot(title, said, {"": bars}, label=label, width=width, standalone=False)

    return figure(draw, HALF)


def figure(draw: Callable[[int, int], str], size: tuple[int, int]) -> str:
    """Return a plot twice, for wide and for narrow screens; the style sheet shows one of them."""
    return f'<figure><div class="wide">{draw(*size)}</div><div class="narrow">{draw(*_NARROW)}</div></figure>'


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of numbers; the first of each row is the row's name."""
    tops = "".join(f'<th scope="col">{escape(each)}</th>' if each else "<td></td>" for each in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(each)}</td>" for each in row[1:])}</tr>'
        for row in rows
    )
    # What may scroll sideways must be reachable by keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="numbers">'
        f"<caption>{escape(caption)}</caption><thead><tr>{tops}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def pairs(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and what they are."""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows
    )
    return f'<table class="pairs"><caption>{escape(caption)}</caption><tbody>{lines}</tbody></table>'
