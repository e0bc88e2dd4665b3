"""The rooms of the program and the direction of the arrows between them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up; a room imports only from floors below, or from its own.
FLOORS = [
    {"errors"},
    {"system"},
    {"api"},
    {"settings", "engine"},
    {"images"},
    {"tasks"},
    {"runs"},
    {"jobs"},
    {"reports"},
    {"commands"},
    {"app"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted((ROOT / "hidra_cli").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "hidra_cli").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert imported(path) == set()
        return
    for name in imported(path):
        assert not name.startswith("hidra_plugins"), "built-ins come through their entry points"
        parts = name.split(".")
        if parts[0] == "hidra_cli" and parts[1] in FLOOR_OF and parts[1] != room:
            assert FLOOR_OF[parts[1]] <= FLOOR_OF[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda p: p.name)
def test_plugins_see_the_api_alone(path: Path) -> None:
    ours = {name for name in imported(path) if name.startswith("hidra_cli")}
    assert all(name.startswith("hidra_cli.api.") for name in ours), ours


def test_jobs_need_neither_typer_nor_rich() -> None:
    """Nor does anything they import: Python users call them without a command line."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "hidra_cli" / "jobs").rglob("*.py"))
    ]
    code = f"import sys, {', '.join(names)}; print(*{{'typer', 'rich'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_the_engine_knows_no_files_and_prints_nothing() -> None:
    for path in (ROOT / "hidra_cli" / "engine").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"pathlib", "os", "h5py", "rich", "typer", "json"}, path
        assert "print(" not in path.read_text()
