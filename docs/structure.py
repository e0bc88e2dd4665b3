"""The rooms of the program and the arrows between them, read from the code.

    python docs/structure.py

Prints the figures of the structure and writes `structure.png`, the picture in architecture.md.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hidra_cli"

# From the top down. A room imports only from floors below its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("app",),
    ("commands",),
    ("reports",),
    ("jobs",),
    ("runs",),
    ("tasks",),
    ("images",),
    ("settings", "engine"),
    ("api",),
    ("system",),
    ("errors",),
)


@dataclass(frozen=True)
class Function:
    """One function of the code and its length in lines, from `def` to its end.

    The signature of a command is left out: it lists the flags.
    """

    name: str
    file: Path
    lines: int


def modules() -> list[Path]:
    """Every file of the program."""
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder or file of hidra_cli that a module lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_arrows() -> set[tuple[str, str]]:
    """(importing module, imported module) of the program's own files, by dotted name."""
    names = {dotted(path): path for path in modules()}
    arrows = set()
    for name, path in names.items():
        for target in imported(path):
            # What is imported may be a module, or a name in one.
            owner = target if target in names else target.rpartition(".")[0]
            if owner in names and owner != name:
                arrows.add((name, owner))
    return arrows


def dotted(path: Path) -> str:
    """hidra_cli/api/data.py → hidra_cli.api.data"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_arrows() -> Counter[tuple[str, str]]:
    """(room, room that it imports from) → how many imports between their files."""
    arrows = Counter(
        (name.split(".")[1], owner.split(".")[1])
        for name, owner in module_arrows()
        if name.count(".") and owner.count(".")
    )
    return Counter({pair: count for pair, count in arrows.items() if pair[0] != pair[1]})


def circle() -> list[str]:
    """Files that import each other in a circle; none, if there is no circle."""
    graph: dict[str, set[str]] = {}
    for name, owner in module_arrows():
        graph.setdefault(name, set()).add(owner)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def functions(folders: tuple[str, ...] = ("hidra_cli", "plugins")) -> Iterator[Function]:
    """Every function of the code."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                is_command = path.parent.name == "commands"
                start = node.body[0].lineno if is_command else node.lineno
                lines = (node.end_lineno or 0) - start + 1
                yield Function(node.name, path.relative_to(ROOT), lines)


def draw(path: Path) -> None:
    """The rooms down a diagonal. A dot: the room at its left imports from the room below it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    order = [room for floor in FLOORS for room in floor]
    place = {room: index for index, room in enumerate(order)}
    files = Counter(room_of(module) for module in modules())
    arrows = room_arrows()
    figure, axes = plt.subplots(figsize=(9, 7))
    pale = "#9db4cf"
    for room, index in place.items():
        targets = [place[target] for source, target in arrows if source == room]
        sources = [place[source] for source, target in arrows if target == room]
        if targets:
            axes.plot([index, max(targets)], [-index, -index], color=pale, linewidth=1, zorder=1)
        if sources:
            start = (index, -min(sources))
            head = {"arrowstyle": "-|>", "color": pale, "linewidth": 1}
            axes.annotate("", (index, -index + 0.3), start, arrowprops=head, zorder=1)
        label = room if files[room] == 1 else f"{room}/\n{files[room]} files"
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "#333333"}
        axes.text(index, -index, label, ha="center", va="center", fontsize=9, bbox=box, zorder=3)
    for (room, target), count in arrows.items():
        x, y = place[target], -place[room]
        axes.scatter([x], [y], s=190, color="#4477aa", zorder=2)
        axes.text(x, y, str(count), ha="center", va="center", color="white", fontsize=7, zorder=4)
    axes.set_xlim(-0.7, len(order) - 0.3)
    axes.set_ylim(-len(order) + 0.3, 0.7)
    axes.axis("off")
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    longest = sorted(modules(), key=lambda path: -len(path.read_text().splitlines()))
    print(f"rooms {len(rooms)}, floors {len(FLOORS)}, arrows between rooms {len(room_arrows())}")
    print(f"files {len(longest)}, arrows between files {len(module_arrows())}")
    for path in longest[:5]:
        print(f"  {len(path.read_text().splitlines())} lines: {path.relative_to(ROOT)}")
    for function in sorted(functions(), key=lambda function: -function.lines)[:5]:
        print(f"  {function.lines} lines: {function.name} in {function.file}")
    for folder in ("hidra_cli", "plugins", "tests", "benchmarks"):
        lines = sum(len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py"))
        print(f"{folder}: {lines} lines")
    draw(ROOT / "docs" / "structure.png")


if __name__ == "__main__":
    main()
