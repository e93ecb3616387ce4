"""Small plots as SVG text: numbers go in, a picture comes out, and no library is asked.

A plot is right wherever it is put: on its own as a file or an `<img>`, it brings its ground and its colours, light or
dark as the reader's screen is; within a page (`standalone=False`), the page brings `STYLE`, once for all of them.

What is shown is also said: each plot has a title and a description for those who don't see it, each line has its name at
its end rather than in a legend, and pointing at a place names the values there. There are no scripts and no style
attributes, so a page may forbid both.

Numbers that are missing (None, NaN) leave a gap, and no number or text makes a plot fail.
"""

from __future__ import annotations

import html
import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.bench.scale import Axis, Scale, clean, plain

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Colours:
    """What a plot, or the page round it, is drawn in."""

    ground: str
    ink: str
    soft: str
    """What is said beside the matter: numbers on axes, units."""
    rule: str
    base: str
    rest: str
    """Bars that are there to compare with."""
    lines: tuple[str, ...]


LIGHT = Colours(
    ground="#ffffff",
    ink="#1b1f24",
    soft="#59636e",
    rule="#e3e6ea",
    base="#8b949e",
    rest="#b4bbc3",
    lines=(
        "#0b6e83",
        "#b3460b",
        "#5b45c4",
        "#1f7a3d",
        "#b02a64",
        "#7a5c00",
        "#3d5a80",
        "#4d5560",
        "#a8201a",
        "#5f6b00",
    ),
)
DARK = Colours(
    ground="#0f1317",
    ink="#e8ebee",
    soft="#a3acb5",
    rule="#272d34",
    base="#69727c",
    rest="#57606a",
    lines=(
        "#45c0d8",
        "#f2965a",
        "#a899f5",
        "#63c483",
        "#ee82ad",
        "#d6b54c",
        "#8fb1dc",
        "#b9c1c9",
        "#ff8f86",
        "#c3cf52",
    ),
)
"""Every text's contrast with its ground is at least 4.5 to 1 (WCAG AA); `test_bench_plot.py` measures it."""

FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'

_LETTER = 6.6
"""The width of a letter of 12 px, in pixels, to the wide side: no font can be measured here."""
_LINE_HEIGHT = 15.0
_STRIPS = 90
"""Places to point at. More would be narrower than a pointer's tip."""
_NAME_LETTERS = 34
"""A bar's name that is longer is cut; its whole is there when pointed at."""
_UNWELCOME = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]"
)
"""What XML forbids, and what turns the direction of the text that follows."""


def escape(text: str) -> str:
    """Return any text as it may stand in SVG or HTML, between tags or in a quoted attribute."""
    return html.escape(_UNWELCOME.sub("\ufffd", text))


def _rules(colours: Colours) -> str:
    return (
        f".plot .ground{{fill:{colours.ground}}}"
        f".plot text{{fill:{colours.soft}}}"
        f".plot .name{{fill:{colours.ink}}}"
        f".plot .rule{{stroke:{colours.rule}}}"
        f".plot .base{{stroke:{colours.base}}}"
        f".plot .rest{{fill:{colours.rest}}}"
        f".plot .strip:hover{{fill:{colours.ink}}}"
    ) + "".join(
        f".plot .l{n}{{stroke:{line}}}.plot .f{n}{{fill:{line}}}" for n, line in enumerate(colours.lines)
    )


STYLE = (
    f".plot{{font:12px {FONT};font-variant-numeric:tabular-nums}}"
    ".plot .title{font-size:14px;font-weight:600}"
    ".plot .line{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}"
    ".plot .area{stroke:none;fill-opacity:.09}"
    ".plot .end{font-weight:600}"
    ".plot .lead{fill:none;stroke-width:1;stroke-opacity:.5}"
    ".plot .strip{fill:transparent}.plot .strip:hover{fill-opacity:.08}"
    f"{_rules(LIGHT)}@media screen and (prefers-color-scheme:dark){{{_rules(DARK)}}}"
)
"""What a page has to have in its style sheet for plots that are not `standalone`."""


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        name: what it shows; said at its end when there are several.
        points: x and y; y is None where nothing was measured.
        colour: which of the palette, so that one thing has one colour in all plots.
    """

    name: str
    points: Sequence[Point]
    colour: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar of a plot.

    Args:
        name: what it shows.
        value: its length; None where nothing was measured.
        text: the value, as it is written at the bar's end; else the bare number.
        strong: whether it is what the plot is about, rather than what that is compared with.
    """

    name: str
    value: float | None
    text: str = ""
    strong: bool = True


def line_plot(
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    width: int = 560,
    height: int = 300,
    standalone: bool = True,
) -> str:
    """Return a plot of lines over a common x axis."""
    drawn = [(line, _clean(line.points)) for line in lines]
    drawn = [(line, points) for line, points in drawn if any(value is not None for _, value in points)]
    values = [value for _, points in drawn for _, value in points if value is not None]
    if not values:
        return _svg(title, description, width, 70, [_text(0, 50, "Nothing was measured.")], standalone)
    several = len(drawn) > 1
    bottom, top = height - 44.0, 56.0
    up = Scale(y.kind, values, bottom, top, ticks=max(2, height // 60))
    left = max(len(name) for _, name in up.ticks) * _LETTER + 10
    right = width - (max(len(line.name) for line, _ in drawn) * (_LETTER + 0.8) + 20 if several else 12)
    right = max(right, left + 40)
    across = Scale(
        x.kind,
        [at for _, points in drawn for at, _ in points],
        left,
        right,
        tight=True,
        ticks=max(2, width // (150 if x.kind == "log" else 90)),
    )

    parts = [_text(0, 36, f"{y.label}, log scale" if y.kind == "log" else y.label)]
    for value, name in up.ticks:
        place = up(value)
        parts.append(f'<path class="rule" d="M{_px(left)} {_px(place)}H{_px(right)}"/>')
        parts.append(_text(left - 8, place + 4, name, anchor="end"))
    ground = _px(up(0.0) if y.kind == "linear" else bottom)
    parts.append(f'<path class="base" d="M{_px(left)} {ground}H{_px(right)}"/>')
    free = -1.0
    for value, name in across.ticks:
        place = across(value)
        half = len(name) * _LETTER / 2
        if place - half > free:  # What would touch its neighbour is left out.
            parts.append(_text(place, bottom + 18, name, anchor="middle"))
            free = place + half + 6
    parts.append(_text((left + right) / 2, height - 8.0, x.label, anchor="middle"))
    for line, points in drawn:
        parts.extend(_line(line, points, across, up, area=not several and y.kind == "linear"))
    if several:
        parts.extend(_ends(drawn, up, right, top - 6, bottom + 4))
    parts.extend(_strips(drawn, across, x, y, top - 8, bottom, left, right))
    return _svg(title, description, width, height, parts, standalone)


def bar_plot(
    title: str,
    description: str,
    groups: Mapping[str, Sequence[Bar]],
    *,
    label: str,
    width: int = 560,
    standalone: bool = True,
) -> str:
    """Return a plot of horizontal bars from zero, under each other.

    Args:
        title: what it shows.
        description: the same for those who don't see it.
        groups: by heading; each is drawn to its own scale. A heading may be empty.
        label: the quantity, with its unit.
        width: in pixels; the height follows from the number of bars.
        standalone: whether it brings its own ground and style.
    """
    bars = [bar for group in groups.values() for bar in group]
    names = max((min(len(bar.name), _NAME_LETTERS) for bar in bars), default=0)
    texts = [bar.text or plain(bar.value or 0.0, 1) for bar in bars]
    left = min(names * _LETTER + 10, width * 0.45)
    letters = round((left - 10) / _LETTER)
    right = max(width - max(map(len, texts), default=0) * _LETTER - 12, left + 20)
    parts, down = [_text(0, 36, label)], 50.0
    for heading, group in groups.items():
        if heading:
            parts.append(_text(0, down + 16, heading, kind="name end"))
            down += 26
        values = [max(clean(bar.value) or 0.0, 0.0) for bar in group]
        longest = max(values, default=0.0) or 1.0
        first = down
        for bar, value in zip(group, values, strict=True):
            name = bar.name if len(bar.name) <= letters else bar.name[: letters - 1] + "…"
            end = left + value / longest * (right - left)
            text = "not measured" if clean(bar.value) is None else bar.text or plain(value, 1)
            parts.append(f"<g><title>{escape(bar.name)}: {escape(text)}</title>")
            parts.append(_text(left - 10, down + 16, name, anchor="end", kind="name"))
            parts.append(
                f'<rect class="{"f0" if bar.strong else "rest"}" x="{_px(left)}" y="{_px(down + 3)}"'
                f' width="{_px(end - left)}" height="18"/>'
            )
            parts.append(_text(end + 7, down + 16, text, kind="name end" if bar.strong else "name") + "</g>")
            down += 26
        parts.append(f'<path class="base" d="M{_px(left)} {_px(first)}V{_px(down - 2)}"/>')
        down += 10
    return _svg(title, description, width, int(down - 8), parts, standalone)


def _svg(title: str, description: str, width: int, height: int, parts: list[str], standalone: bool) -> str:
    # A margin all round, where the plot is a picture of its own.
    edge = 16 if standalone else 0
    box = f"{-edge} {-edge} {width + 2 * edge} {height + 2 * edge}"
    own = ""
    if standalone:
        own = (
            f'<style>{STYLE}</style><rect class="ground" x="{-edge}" y="{-edge}" width="100%" height="100%"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" viewBox="{box}"'
        f' width="{width + 2 * edge}" height="{height + 2 * edge}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{own}"
        f"{_text(0, 14, title, kind='title name')}{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "", kind: str = "") -> str:
    attributes = f' text-anchor="{anchor}"' if anchor else ""
    attributes += f' class="{kind}"' if kind else ""
    return f'<text x="{_px(x)}" y="{_px(y)}"{attributes}>{escape(text)}</text>'


def _px(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _clean(points: Sequence[Point]) -> list[Point]:
    cleaned = ((clean(at), clean(value)) for at, value in points)
    return sorted(((at, value) for at, value in cleaned if at is not None), key=lambda point: point[0])


def _line(line: Line, points: list[Point], across: Scale, up: Scale, *, area: bool) -> Iterator[str]:
    colour = line.colour % len(LIGHT.lines)
    for measured, run in itertools.groupby(points, key=lambda point: point[1] is not None):
        if not measured:
            continue
        places = list(_thin((across(at), up(value)) for at, value in run if value is not None))
        if len(places) == 1:
            yield f'<circle class="f{colour}" cx="{_px(places[0][0])}" cy="{_px(places[0][1])}" r="3"/>'
            continue
        path = "L".join(f"{_px(x)} {_px(y)}" for x, y in places)
        if area:
            ground = _px(up(0.0))
            yield (
                f'<path class="area f{colour}"'
                f' d="M{_px(places[0][0])} {ground}L{path}L{_px(places[-1][0])} {ground}Z"/>'
            )
        yield f'<path class="line l{colour}" d="M{path}"/>'


def _thin(places: Iterator[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield of each column of pixels what can be seen: where the line comes in, its peaks, and where it leaves."""
    for _, group in itertools.groupby(places, key=lambda place: int(place[0])):
        column = list(group)
        seen = {0, len(column) - 1}
        seen.add(min(range(len(column)), key=lambda index: column[index][1]))
        seen.add(max(range(len(column)), key=lambda index: column[index][1]))
        yield from (column[index] for index in sorted(seen))


def _ends(
    drawn: list[tuple[Line, list[Point]]], up: Scale, right: float, top: float, bottom: float
) -> Iterator[str]:
    """Yield the lines' names at their ends, pushed apart where the lines meet."""
    last = [next(value for _, value in reversed(points) if value is not None) for _, points in drawn]
    order = sorted(range(len(drawn)), key=lambda index: up(last[index]))
    places: list[float] = []
    for index in order:
        places.append(max(up(last[index]), places[-1] + _LINE_HEIGHT if places else top))
    limit = bottom
    for n in reversed(range(len(places))):
        places[n] = min(places[n], limit)
        limit = places[n] - _LINE_HEIGHT
    for index, place in zip(order, places, strict=True):
        line = drawn[index][0]
        colour = line.colour % len(LIGHT.lines)
        yield f'<path class="lead l{colour}" d="M{_px(right + 2)} {_px(up(last[index]))}L{_px(right + 9)} {_px(place)}"/>'
        yield _text(right + 12, place + 4, line.name, kind=f"end f{colour}")


def _strips(
    drawn: list[tuple[Line, list[Point]]],
    across: Scale,
    x: Axis,
    y: Axis,
    top: float,
    bottom: float,
    left: float,
    right: float,
) -> Iterator[str]:
    """Yield the places to point at, with what is there."""
    apart = (right - left) / _STRIPS
    shown: list[float] = []
    for at in sorted({at for _, points in drawn for at, _ in points}):
        if not shown or across(at) - across(shown[-1]) >= apart:
            shown.append(at)
    edges = [left, *((across(a) + across(b)) / 2 for a, b in itertools.pairwise(shown)), right]
    columns = [[at for at, _ in points] for _, points in drawn]
    for at, (begin, end) in zip(shown, itertools.pairwise(edges), strict=True):
        said = [f"{_exact(at)} {x.unit}".strip()]
        for (line, points), column in zip(drawn, columns, strict=True):
            there, value = points[min(bisect_left(column, at), len(points) - 1)]
            if value is not None and abs(across(there) - across(at)) <= apart:
                said.append(f"{line.name}: {_exact(value)} {y.unit}".strip())
        yield (
            f'<rect class="strip" x="{_px(begin)}" y="{_px(top)}" width="{_px(max(end - begin, 0))}"'
            f' height="{_px(bottom - top)}"><title>{escape(chr(10).join(said))}</title></rect>'
        )


def _exact(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
