"""Makes one result of what the load processes report."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

from penstock.bench.plan import Report, Segment
from penstock.bench.recorder import NAMES
from penstock.bench.result import Distribution, Moment
from penstock.bench.times import Times, exact_p99

_OF_EVENTS = ("latency", "gap")
"""Times that count in the measured time only; of the others there is one for each connection, wherever it falls."""


class Summary:
    """What several reports say together."""

    def __init__(self, reports: list[Report]) -> None:
        self._segments = [segment for report in reports for segment in report.segments]
        self._measured = [segment for segment in self._segments if segment.measured]
        self._reports = reports
        self.started = sum(report.started for report in reports)
        self.opened = sum(report.opened for report in reports)
        self.finished = sum(report.finished for report in reports)
        self.stamped = any(report.stamped for report in reports)
        self.overfull = any(report.overfull for report in reports)
        self.errors: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        for report in reports:
            self.errors += Counter(report.errors)
            self.counts += Counter(report.counts)
        self.events = sum(segment.events for segment in self._measured)
        self.bytes = sum(segment.received for segment in self._measured)
        self.keepalives = sum(segment.keepalives for segment in self._segments)

    @property
    def duration_s(self) -> float:
        """The measured time: of the load process that measured longest."""
        return max(
            (sum(_length_s(part) for part in _measured(report)) for report in self._reports), default=0.0
        )

    @property
    def load_cpu(self) -> float:
        """The largest share of a core that a load process used within the measured time."""
        shares = [0.0]
        for report in self._reports:
            measured = _measured(report)
            length_s = sum(map(_length_s, measured))
            if length_s > 0:
                shares.append(sum(part.cpu_s for part in measured) / length_s)
        return max(shares)

    def times(self) -> dict[str, Distribution]:
        """All times of which something was measured."""
        found: dict[str, Distribution] = {}
        for name in NAMES:
            times = Times()
            for segment in self._measured if name in _OF_EVENTS else self._segments:
                times.add(segment.samples.get(name, b""))
                if name == "gap":
                    times.add_zeros(segment.together)
            if times.count:
                found[name] = times.distribution()
        return found

    def timeline(self) -> list[Moment]:
        """The run, second by second."""
        seconds: defaultdict[int, list[Segment]] = defaultdict(list)
        for report in self._reports:
            for segment in report.segments:
                # A segment ends at a second, a little late, or where the measured time begins or ends.
                seconds[int((segment.from_s + segment.to_s) / 2)].append(segment)
        opened: dict[int, int] = {}
        for report in self._reports:
            last = {int((segment.from_s + segment.to_s) / 2): segment.open for segment in report.segments}
            for second, count in last.items():
                opened[second] = opened.get(second, 0) + count
        return [
            Moment(
                at_s=second + 1.0,
                open=opened[second],
                events=sum(segment.events for segment in segments),
                bytes=sum(segment.received for segment in segments),
                errors=sum(segment.errors for segment in segments),
                p99=_p99(segments),
            )
            for second, segments in sorted(seconds.items())
        ]


def _measured(report: Report) -> list[Segment]:
    return [segment for segment in report.segments if segment.measured]


def _length_s(segment: Segment) -> float:
    return segment.to_s - segment.from_s


def _p99(segments: list[Segment]) -> float | None:
    for name in _OF_EVENTS:
        found = exact_p99(b"".join(segment.samples.get(name, b"") for segment in segments))
        if found is not None:
            return found
    return None


def machine(cores: int) -> dict[str, str | int]:
    """Describe the machine that makes the load."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": cores,
        "python": platform.python_version(),
        "penstock": version("penstock"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
