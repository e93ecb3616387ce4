"""What one load process measures, kept so that keeping it costs next to nothing.

A value is one `append` to an array of nanoseconds: HDR histograms are made of them when the run is over, because to
record one costs more than to receive an event. Once a second, and where the measured time begins and ends, `tick`
notes how long the arrays are; so nothing on the way of an event asks what time it is in.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import Counter

from penstock.bench.plan import Report, Segment

NAMES = (
    "latency",
    "gap",
    "connect",
    "first_byte",
    "first_token",
    "turn",
    "resume",
    "caught_up",
    "cut",
    "kept",
)
_SHOWN = 500
"""Values of the last second that are shown while it runs: enough for a 99th percentile, and sorted in no time."""


class Recorder:
    """Counts and times of one load process."""

    def __init__(self) -> None:
        self.times = {name: array("q") for name in NAMES}
        self.started = 0
        self.opened = 0
        self.finished = 0
        self.open = 0
        self.events = 0
        self.bytes = 0
        self.keepalives = 0
        self.together = 0
        self.errors: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.lags: list[tuple[array[int], int]] = []
        """For each stream without stamps: when its events came, less the pace, and the pace; all in ns."""
        self._marks: list[_Mark] = []
        self._shown = {"latency": 0, "gap": 0}

    @property
    def size(self) -> int:
        """How many values are kept."""
        return sum(map(len, self.times.values())) + sum(len(lags) for lags, _ in self.lags)

    def tick(self, now_ns: int, *, measured: bool) -> None:
        """End a segment, and say whether the next one is measured."""
        self._marks.append(_Mark(self, now_ns, measured))

    def shown(self) -> bytes:
        """Return some of the values that came since the last call: `latency`, or `gap` where there is none."""
        newest = b""
        for name in ("gap", "latency"):
            values = self.times[name][self._shown[name] :]
            self._shown[name] += len(values)
            if values:
                newest = values[:: len(values) // _SHOWN + 1].tobytes()
        return newest

    def report(self, began_ns: int, *, overfull: bool) -> Report:
        """Return all of it. The last tick ends the last segment."""
        segments = [
            _segment(self, before, after, began_ns)
            for before, after in zip(self._marks, self._marks[1:], strict=False)
        ]
        stamped = bool(self.times["latency"])
        self._add_lags(segments, began_ns)
        return Report(
            started=self.started,
            opened=self.opened,
            finished=self.finished,
            errors=dict(self.errors),
            segments=segments,
            stamped=stamped,
            counts=dict(self.counts),
            overfull=overfull,
        )

    def _add_lags(self, segments: list[Segment], began_ns: int) -> None:
        """Turn arrivals into latencies: how much later than the one that kept the pace best."""
        if not segments:
            return
        ends = [began_ns + int(segment.to_s * 1e9) for segment in segments]
        late = [array("q") for _ in segments]
        for lags, period_ns in self.lags:
            best = min(lags)
            for number, lag in enumerate(lags):
                at = bisect_left(ends, lag + number * period_ns)
                late[min(at, len(late) - 1)].append(lag - best)
        for segment, values in zip(segments, late, strict=True):
            if values:
                segment.samples["latency"] = segment.samples.get("latency", b"") + values.tobytes()


class _Mark:
    """How much there was of everything, at one moment."""

    def __init__(self, recorder: Recorder, now_ns: int, measured: bool) -> None:
        self.now_ns = now_ns
        self.measured = measured
        self.cpu_s = time.process_time()
        self.open = recorder.open
        self.events = recorder.events
        self.bytes = recorder.bytes
        self.errors = recorder.errors.total()
        self.keepalives = recorder.keepalives
        self.together = recorder.together
        self.lengths = {name: len(values) for name, values in recorder.times.items()}


def _segment(recorder: Recorder, before: _Mark, after: _Mark, began_ns: int) -> Segment:
    samples = {
        name: values[before.lengths[name] : after.lengths[name]].tobytes()
        for name, values in recorder.times.items()
        if after.lengths[name] > before.lengths[name]
    }
    return Segment(
        from_s=(before.now_ns - began_ns) / 1e9,
        to_s=(after.now_ns - began_ns) / 1e9,
        measured=before.measured,
        open=after.open,
        events=after.events - before.events,
        received=after.bytes - before.bytes,
        errors=after.errors - before.errors,
        keepalives=after.keepalives - before.keepalives,
        together=after.together - before.together,
        cpu_s=after.cpu_s - before.cpu_s,
        samples=samples,
    )
