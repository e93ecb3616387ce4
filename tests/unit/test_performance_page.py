"""The figures of docs/performance.md and its plot are those of the results, not somebody's typing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
REPORT_S = 30.0


def test_the_page_is_made_from_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=REPORT_S,
    )
    assert done.returncode == 0, done.stderr
