"""The rooms of the program: their names, the direction of the arrows, and how long things get."""

from __future__ import annotations

import graphlib
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STRUCTURE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "structure.py"))
FLOOR_OF = {room: floor for floor, rooms in enumerate(STRUCTURE["FLOORS"]) for room in rooms}
MODULES: list[Path] = STRUCTURE["modules"]()
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 60, 400


def imported(path: Path) -> set[str]:
    names: set[str] = STRUCTURE["imported"](path)
    return names


def below(*parts: str) -> list[Path]:
    return sorted(ROOT.joinpath(*parts).rglob("*.py"))


def test_the_root_of_the_program_has_these_entries() -> None:
    rooms = {STRUCTURE["room_of"](path) for path in MODULES}
    assert rooms == {"__init__", *FLOOR_OF}
    assert imported(ROOT / "hidra_cli" / "__init__.py") == set()


def test_the_page_on_the_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    missing = [room for room in FLOOR_OF if f"| `{room}" not in page]
    assert not missing


def test_arrows_between_rooms_point_down() -> None:
    up = [
        f"{room} imports from {target}"
        for room, target in STRUCTURE["room_arrows"]()
        if FLOOR_OF[target] <= FLOOR_OF[room]
    ]
    assert not up


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, owner in STRUCTURE["module_arrows"]():
        graph.setdefault(name, set()).add(owner)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as circle:
        pytest.fail(" → ".join(circle.args[1]))


def test_built_in_plugins_come_through_their_entry_points() -> None:
    direct = [
        path for path in MODULES if any(n.startswith("hidra_plugins") for n in imported(path))
    ]
    assert not direct


@pytest.mark.parametrize("path", below("plugins"), ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_see_the_api_alone(path: Path) -> None:
    ours = {name for name in imported(path) if name.startswith("hidra_cli")}
    assert all(name.startswith("hidra_cli.api.") for name in ours), ours


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("engine", {"pathlib", "os", "h5py", "rich", "typer", "json"}),
        ("jobs", {"rich", "typer"}),
        ("runs", {"rich", "typer"}),
    ],
)
def test_a_room_does_without_these_packages(room: str, forbidden: set[str]) -> None:
    for path in below("hidra_cli", room):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & forbidden, path
        assert "print(" not in path.read_text().replace("console.print(", ""), path


def test_no_function_is_longer_than_a_screen() -> None:
    long = [f for f in STRUCTURE["functions"]() if f.lines > MOST_LINES_OF_A_FUNCTION]
    assert not long


def test_no_file_is_longer_than_a_reader_keeps_in_mind() -> None:
    files = below("hidra_cli") + below("plugins")
    long = [path for path in files if len(path.read_text().splitlines()) > MOST_LINES_OF_A_FILE]
    assert not long


def test_commands_define_no_classes() -> None:
    classes = [
        path for path in below("hidra_cli", "commands") if "\nclass " in f"\n{path.read_text()}"
    ]
    assert not classes
