"""The machine: its cores, what it is, the versions of what runs on it, and what a process has used of it."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = CORES[0]
LOAD_CORE = CORES[-1]
PACKAGES = (
    "penstock", "trio", "hypercorn", "msgspec", "sse-starlette", "starlette", "fastapi", "pydantic", "uvicorn",
    "uvloop", "httptools", "granian", "aiohttp", "aiohttp-sse",
)  # fmt: skip
PROGRAMS = {"node": ["node", "--version"], "go": ["go", "version"], "nginx": ["nginx", "-v"]}


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            pass  # It has ended.
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its descendants have used, to the nanosecond.

    `/proc/PID/stat` counts in hundredths of a second, and a burst takes eight of them.
    """
    total = 0.0
    for member in family(pid):
        try:
            total += time.clock_gettime((~member << 3) | 2)  # clock_getcpuclockid(3)
        except OSError:
            pass  # It has ended.
    return total


def raise_descriptor_limit() -> int:
    """Let this process and those it starts open as many descriptors as they may; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def describe() -> dict[str, str | int]:
    """Describe the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": model or platform.machine(),
        "cores": len(CORES),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "descriptors": raise_descriptor_limit(),
    }


def versions() -> dict[str, str]:
    """Return the versions of all that is measured, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass  # A peer that can't be had is named where servers are.
    for name, command in PROGRAMS.items():
        if shutil.which(name):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10.0)
            words = (done.stdout + done.stderr).replace("/", " ").split()
            found[name] = next((word.strip("gov") for word in words if any(map(str.isdigit, word))), "?")
    return found
