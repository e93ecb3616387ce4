"""Numbers as Prometheus reads them: its text format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/ A counter `turns_ended` is `penstock_turns_ended_total` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from penstock.metrics import MEASURES, Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def prometheus_text(values: Mapping[Series, int]) -> str:
    """Return these numbers in that format. A name that is not among `MEASURES` is left out: nobody knows its kind."""
    lines: list[str] = []
    for name, group in groupby(sorted(values.items()), lambda item: item[0][0]):
        if (measure := MEASURES.get(name)) is None:
            continue
        exposed = f"penstock_{name}" + ("_total" if measure.kind == "counter" else "")
        lines += [f"# HELP {exposed} {measure.help}", f"# TYPE {exposed} {measure.kind}"]
        lines += [f"{exposed}{_labels(labels)} {value}" for (_, labels), value in group]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    pairs = ",".join([f'{name}="{_escaped(value)}"' for name, value in labels])
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
