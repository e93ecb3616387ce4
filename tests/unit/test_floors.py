"""A file imports only from lower floors or its own folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock

ROOT = Path(penstock.__file__).parent

FLOORS = {
    "asgi": 0,
    "errors": 0,
    "limits": 0,
    "closing": 0,
    "metrics": 0,
    "prometheus": 0,
    "wire": 1,
    "journal": 2,
    "turns": 3,
    "http": 3,
    "websocket": 3,
    "relay": 4,
    "connections": 4,
    "client": 4,
    "interop": 4,
    "web": 5,
    "server": 6,
    "demo": 6,
    "bench": 6,
    "cli": 7,
    # The public faces see everything, and nothing inside may import them.
    "testing": 8,
    "__init__": 8,
    "__main__": 8,
}
SANS_IO = {"asgi", "errors", "limits", "closing", "metrics", "prometheus", "wire"}
# `demo` is the built-in model: an app like any user's, and so it uses what a user would.
SEES_PUBLIC_NAMES = {"demo", "testing"}


def noun(path: Path) -> str:
    """The file or folder of the top level that a path is in."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """All modules that a file imports, at any depth of its code, but for typing alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_lower_floors(path: Path) -> None:
    here = noun(path)
    for module in imports(path):
        top, _, rest = module.partition(".")
        if top != "penstock":
            continue
        there = rest.partition(".")[0] or "__init__"
        if there == here or (there == "__init__" and here in SEES_PUBLIC_NAMES):
            continue
        # The ground floor is one folder: its files are nouns that know each other.
        assert FLOORS[there] < FLOORS[here] or FLOORS[there] == FLOORS[here] == 0, (
            f"{here} (floor {FLOORS[here]}) imports {module}"
        )


@pytest.mark.parametrize(
    "path", [path for path in FILES if noun(path) in SANS_IO], ids=lambda path: path.name
)
def test_lowest_floors_know_no_io(path: Path) -> None:
    foreign = {"trio", "quart", "quart_trio", "hypercorn", "socket", "httpx2"}
    assert not foreign & {module.partition(".")[0] for module in imports(path)}


def test_files_are_of_one_noun_and_readable_length() -> None:
    for path in FILES:
        assert path.stem not in {"utils", "helpers", "manager", "base"}, path
        assert len(path.read_text().splitlines()) <= 400, path
