"""Plots: whatever the numbers and texts, valid SVG with sensible axes, in colours that can be read."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.plot import DARK, LIGHT, STYLE, Bar, Colours, Line, Point, bar_plot, escape, line_plot
from penstock.bench.scale import Axis, Kind, Scale, clean

SVG = "{http://www.w3.org/2000/svg}"
KINDS: tuple[Kind, ...] = ("linear", "log", "percentile")
HOSTILE = "</title><script>alert(1)</script>\"'&<!-- \0\x1b\ud800\u202e]]>"


def draw(
    lines: list[Line], x: Kind = "linear", y: Kind = "linear", *, standalone: bool = True
) -> ElementTree.Element:
    text = line_plot(
        "Title", "Description", lines, x=Axis("across", "s", x), y=Axis("up", "ms", y), standalone=standalone
    )
    return parse(text)


def parse(svg: str) -> ElementTree.Element:
    """Parse what a file would hold; no number may have become one that SVG does not know."""
    root = ElementTree.fromstring(svg.encode())
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in {"d", "x", "y", "width", "height", "cx", "cy"}:
                assert "nan" not in value, element.attrib
                assert "inf" not in value, element.attrib
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def having(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if kind in element.get("class", "").split()]


def test_a_plot_says_what_it_shows() -> None:
    root = draw([Line("one", [(0, 1), (1, 2)]), Line("two", [(0, 3), (1, 4)], 1)])
    assert root.get("role") == "img"
    assert [child.text for child in root if child.tag in {f"{SVG}title", f"{SVG}desc"}] == [
        "Title",
        "Description",
    ]
    assert {"Title", "up", "across", "one", "two"} <= set(texts(root))
    pointed = [strip[0].text for strip in having(root, "strip")]
    assert pointed == ["0 s\none: 1 ms\ntwo: 3 ms", "1 s\none: 2 ms\ntwo: 4 ms"]


def test_a_plot_on_its_own_has_its_ground_and_both_colours_and_one_in_a_page_has_not() -> None:
    alone, within = draw([Line("one", [(0, 1)])]), draw([Line("one", [(0, 1)])], standalone=False)
    style = alone.find(f"{SVG}style")
    assert style is not None
    assert style.text == STYLE
    assert "prefers-color-scheme:dark" in STYLE
    assert having(alone, "ground")
    assert within.find(f"{SVG}style") is None
    assert not having(within, "ground")


def test_there_are_no_style_attributes_scripts_or_links() -> None:
    root = draw([Line(HOSTILE, [(0, 1), (1, 2)]), Line("b", [(0, 1)])])
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "desc", "style", "rect", "path", "circle", "text", "g",
    }  # fmt: skip
    assert not any(
        name.startswith("on") or name in {"style", "href"} for each in root.iter() for name in each.attrib
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0, None)],
        [(math.nan, 1)],
        [(0, math.nan), (1, math.inf), (2, -math.inf)],
        [(50, 7)],
        [(0, 0), (1, 0), (2, 0)],
        [(0, 1e-300), (1, 1e300)],
        [(1e300, 5e-324), (-1e300, -1e308)],
        [(1e15, 1e15), (1e15 + 1, 1e15 + 0.1)],
        [(5, 1), (5, 2), (5, 3)],
        [(n, n % 7) for n in range(5_000)],
        [(100, 3)],
        [(100 * (1 - 0.5**n), 2.0**n) for n in range(60)],
    ],
    ids=lambda points: f"{len(points)}-{points[:1]}",
)
def test_no_numbers_make_it_fail(points: list[Point], kind: Kind) -> None:
    draw([Line("a", points), Line("b", points[:1])], x=kind, y="log" if kind == "log" else "linear")


@given(
    points=st.lists(st.tuples(st.floats(), st.none() | st.floats()), max_size=30),
    x=st.sampled_from(KINDS),
    y=st.sampled_from(["linear", "log"]),
)
def test_no_numbers_at_all_make_it_fail(points: list[Point], x: Kind, y: Kind) -> None:
    draw([Line("a", points), Line("b", points[1:])], x=x, y=y)


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_text(text: str) -> None:
    root = parse(bar_plot(text, text, {text: [Bar(text, 1, text)]}, label=text))
    assert (root[0].text or "") == (root[1].text or "")
    ElementTree.fromstring(f'<a b="{escape(text)}">{escape(text)}</a>'.encode())


def test_hostile_text_stays_text() -> None:
    root = parse(bar_plot(HOSTILE, HOSTILE, {HOSTILE: [Bar(HOSTILE, 1, HOSTILE)]}, label=HOSTILE))
    assert root[0].text == "</title><script>alert(1)</script>\"'&<!-- \ufffd\ufffd\ufffd\ufffd]]>"


def test_what_was_not_measured_is_a_gap_and_a_lone_value_a_dot() -> None:
    root = draw([Line("one", [(0, 1), (1, 2), (2, None), (3, 5), (4, math.nan), (5, 1), (6, 1)])])
    assert len(having(root, "line")) == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 1


def test_a_peak_among_thousands_of_points_is_seen_and_they_are_thinned() -> None:
    many: list[Point] = [(n, 1.0) for n in range(100_000)]
    many[54_321] = (54_321, 100.0)
    root = draw([Line("one", many)])
    (line,) = having(root, "line")
    places = [tuple(map(float, place.split())) for place in line.attrib["d"].removeprefix("M").split("L")]
    assert len(places) < 2_500
    assert min(y for _, y in places) == 56  # The top of the axis, which ends at 100.
    assert len(having(root, "strip")) <= 91


def test_names_at_line_ends_do_not_touch() -> None:
    root = draw([Line(f"line {n}", [(0, 1), (1, 1 + n / 1000)], n) for n in range(7)])
    places = sorted(float(end.attrib["y"]) for end in having(root, "end"))
    assert len(places) == 7
    assert min(b - a for a, b in pairwise(places)) >= 14.9


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        ("linear", [0, 25_310], "0 10,000 20,000 30,000"),
        ("linear", [0.18], "0 0.05 0.10 0.15 0.20"),
        ("linear", [-5, 3], "-6 -4 -2 0 2 4"),
        ("linear", [2.5e6], "0 500,000 1.0_M 1.5_M 2.0_M 2.5_M"),
        ("log", [0.2, 4_000], "1 10 100 1,000"),
        ("log", [3, 40], "2 5 10 20 50"),
        ("log", [7, 7], "5 10"),
        ("percentile", [0, 50, 99.9, 99.99, 100], "0 50 90 99 99.9 99.99 max"),
        ("percentile", [0, 97], "0 50 90"),
    ],
)
def test_axes_name_round_numbers(kind: Kind, values: list[float], named: str) -> None:
    scale = Scale(kind, values, 0, 100)
    assert [name.replace(" ", "_") for _, name in scale.ticks] == named.split()
    places = [scale(value) for value, _ in scale.ticks]
    assert places == sorted(set(places))


@given(st.lists(st.floats(0).map(clean), min_size=1), st.sampled_from(["linear", "log"]))
def test_axes_name_few_numbers_and_hold_all_values(values: list[float], kind: Kind) -> None:
    scale = Scale(kind, values, 0, 100)
    assert 1 <= len(scale.ticks) <= 9
    assert all(0 <= scale(value) <= 100 for value in values)
    assert scale(max(values)) == max(map(scale, values))


def test_on_a_percentile_axis_each_nine_is_as_far() -> None:
    scale = Scale("percentile", [0, 99.999, 100], 0, 600)
    steps = [scale(b) - scale(a) for a, b in ((0, 90), (90, 99), (99, 99.9), (99.9, 99.99))]
    assert steps == pytest.approx([steps[0]] * 4)
    assert scale(100) == 600


def test_bars_are_as_long_as_their_values_within_their_group() -> None:
    groups = {
        "a": [Bar("x", 10), Bar("y", 5), Bar("n", None), Bar("z", 0)],
        "b": [Bar("x", 1), Bar("nan", math.nan), Bar("less", -3)],
    }
    root = parse(bar_plot("t", "d", groups, label="units"))
    widths = [float(bar.attrib["width"]) for bar in having(root, "f0")]
    assert widths[0] == widths[4] > 100
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.1)
    assert [widths[n] for n in (2, 3, 5, 6)] == [0, 0, 0, 0]
    assert texts(root).count("not measured") == 2
    parse(bar_plot("t", "d", {}, label="units"))


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_and_lines_can_be_read(colours: Colours) -> None:
    for text in (colours.ink, colours.soft, *colours.lines):
        assert contrast(text, colours.ground) >= 4.5, text
