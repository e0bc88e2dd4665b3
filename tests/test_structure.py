"""The rooms of the program, the direction of the arrows between them, and the sizes in them."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hidra_cli"

structure = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "structure.py")))
FLOOR_OF = {
    room: -floor for floor, rooms in enumerate(structure.FLOORS) for room in rooms
}  # higher above
MODULES = structure.modules()
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_FILE = 400


def own_imports(path: Path) -> set[str]:
    return {name for name in structure.imported(path) if name.split(".")[0] == "hidra_cli"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_root_has_these_entries_and_no_others() -> None:
    entries = {
        path.name
        for path in PACKAGE.iterdir()
        if not path.name.startswith((".", "_")) and path.suffix != ".so"
    }
    folders = {"commands", "reports", "jobs", "runs", "tasks", "images"}
    folders |= {"settings", "engine", "api", "system"}
    assert entries == folders | {"app.py", "errors.py", "py.typed"}
    assert {entry.removesuffix(".py") for entry in entries} - {"py.typed"} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    room = structure.room_of(path)
    assert not any(name.startswith("hidra_plugins") for name in structure.imported(path)), (
        "built-ins come through their entry points"
    )
    if room == "__init__":
        assert own_imports(path) == set()
        return
    for name in own_imports(path):
        target = name.split(".")[1]
        if target in FLOOR_OF and target != room:
            assert FLOOR_OF[target] < FLOOR_OF[room], f"{room} imports {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    assert structure.circle() == []


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugins_see_the_api_alone(path: Path) -> None:
    assert all(name.startswith("hidra_cli.api.") for name in own_imports(path))


def test_jobs_and_runs_need_neither_typer_nor_rich() -> None:
    """Nor does anything they import: Python users call them without a command line."""
    paths = [path for path in MODULES if structure.room_of(path) in ("jobs", "runs")]
    for path in paths:
        tops = {name.split(".")[0] for name in structure.imported(path)}
        assert not tops & {"typer", "rich"}, path
    names = ", ".join(map(structure.dotted, paths))
    code = f"import sys, {names}; print(*{{'typer', 'rich'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_the_engine_knows_no_files_and_prints_nothing() -> None:
    for path in (PACKAGE / "engine").rglob("*.py"):
        tops = {name.split(".")[0] for name in structure.imported(path)}
        assert not tops & {"pathlib", "os", "h5py", "rich", "typer", "json"}, path
        assert "print(" not in path.read_text()


def test_no_file_uses_a_private_name_of_another() -> None:
    for path in MODULES:
        names = {name.rpartition(".")[2] for name in own_imports(path)}
        private = {name for name in names if name.startswith("_") and not name.endswith("__")}
        assert not private, path


def test_commands_define_no_classes() -> None:
    for path in (PACKAGE / "commands").glob("*.py"):
        names = [
            n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)
        ]
        assert names == [], path


def test_no_function_and_no_file_is_long() -> None:
    long = [
        f"{function.name} in {function.file}: {function.lines} lines"
        for function in structure.functions()
        if function.lines > MOST_LINES_OF_A_FUNCTION
    ]
    for path in [*MODULES, *PLUGINS]:
        lines = len(path.read_text().splitlines())
        if lines > MOST_LINES_OF_A_FILE:
            long.append(f"{name_of(path)}: {lines} lines")
    assert long == []


def test_the_page_on_the_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room in FLOOR_OF:
        name = f"{room}/" if (PACKAGE / room).is_dir() else f"{room}.py"
        assert f"| `{name}` |" in page
