"""`penstock bench`: a load test as a person sees it: its options, its progress, a table, files, an exit status."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from rich.console import Console

from penstock.bench.expect import parse_expect
from penstock.bench.fleet import FleetError
from penstock.bench.limits import BENCH, BenchLimits
from penstock.bench.recipe import make_recipe, read_recipe
from penstock.bench.result import Result
from penstock.bench.run import Run
from penstock.bench.table import Watcher, notes_on, print_result

EXPECTATION_FAILED = 1
NOTHING_MEASURED = 3
"""Exit status when no connection got a good answer, or the load could not be made."""


def bench(
    url: str,
    options: dict[str, Any],
    *,
    recipe: Path | None,
    pid: int | None,
    json_file: str | None,
    report: Path | None,
    limits: BenchLimits = BENCH,
) -> int:
    """Make a run, print what was found, and return the exit status: 0, `EXPECTATION_FAILED` or `NOTHING_MEASURED`.

    Args:
        url: of the server.
        options: a recipe's fields that were typed; None or empty for those that were not.
        recipe: a file with the others.
        pid: the server's process, to be measured, too.
        json_file: where the result goes as JSON; `-` for stdout, and the table goes to stderr.
        report: where a page with plots goes.
        limits: what is done at most.

    Raises:
        ValueError: with a sentence, for what can't be done as it is asked for.
    """
    made = make_recipe({} if recipe is None else read_recipe(recipe), _typed(options), limits)
    expectations = [parse_expect(text) for text in made.expect]
    for file in (report, None if json_file in (None, "-") else Path(str(json_file))):
        # Better now than after a minute.
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"there is no directory {file.parent} for {file.name}")
    run = Run(url, made, pid=pid, limits=limits)
    console = Console(stderr=json_file == "-")
    errors = Console(stderr=True)
    try:
        result = _make(run, console)
    except FleetError as error:
        errors.print(f"Error: {error}", highlight=False, markup=False)
        return NOTHING_MEASURED
    judged = [expectation.judge(result) for expectation in expectations]
    result = msgspec.structs.replace(result, expectations=judged)
    print_result(console, result, notes_on(result, limits))
    if json_file is not None:
        _write_json(result, json_file)
    if report is not None:
        from penstock.bench.report import write_report

        write_report(result, report)
        console.print(f"The report is in {report}", highlight=False, markup=False)
    if not result.opened:
        errors.print("Error: nothing could be measured: no stream was opened.", highlight=False)
        return NOTHING_MEASURED
    return 0 if all(expectation.held for expectation in judged) else EXPECTATION_FAILED


def _make(run: Run, console: Console) -> Result:
    """Make the run; one Ctrl-C ends it early, and a second one at once."""
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with Watcher(console, run.begins_s, run.ends_s) as watcher:
            return run.make(watcher.show, lambda: interrupts > 0)
    finally:
        signal.signal(signal.SIGINT, before)


def _typed(options: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's fields as they were typed, without those that were not."""
    typed = {name: value for name, value in options.items() if value is not None and value != ()}
    if "expect" in typed:
        typed["expect"] = list(typed["expect"])
    if "headers" in typed:
        typed["headers"] = dict(_header(header) for header in typed["headers"])
    return typed


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f"--header is NAME:VALUE, not {text}")
    return name.strip(), value.strip()


def _write_json(result: Result, file: str) -> None:
    data = msgspec.json.format(msgspec.json.encode(result)) + b"\n"
    if file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(file).write_bytes(data)
