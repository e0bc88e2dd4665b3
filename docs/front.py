"""The picture at the top of the README: drawings that are learned and labelled, and figure 1.

    python docs/front.py

The drawings come from the dataset `glyphs`; `hidra adapt` and `hidra predict` label them. The curve
is that of docs/results/figure1-omniglot.json.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hidra_cli.reports.figures import COLOURS
from hidra_plugins.datasets.glyphs import Glyphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parent
NAMES = ("ka", "mo", "ti", "ru")
SHOTS = 5
CHARACTERS = (3, 47, 71, 88)  # of the test alphabets; the last picture is of another
OTHER = 29
Drawing = NDArray[np.uint8]


def draw(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Black drawings on white: those to learn by class, and others to label."""
    classes = [one for one in Glyphs(None, size=84).classes(folder) if one.split == "test"]

    def saved(image: Any, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.asarray(image)).save(path)
        return path

    learned, others = {}, []
    for name, number in zip(NAMES, CHARACTERS, strict=True):
        images = list(classes[number].images)
        learned[name] = [
            saved(image, folder / "learn" / name / f"{index}.png")
            for index, image in enumerate(images[:SHOTS])
        ]
        others.append(saved(images[SHOTS], folder / "new" / f"{name}.png"))
    others.append(saved(next(iter(classes[OTHER].images)), folder / "new" / "other.png"))
    return learned, others


def labelled(folder: Path) -> dict[str, tuple[str, float]]:
    """What hidra says of the new pictures: file name → label and probability."""
    hidra = [sys.executable, "-m", "hidra_cli.app"]

    def run(*words: str) -> None:
        subprocess.run([*hidra, *words, "-q"], cwd=folder, check=True)

    run("adapt", "--support", "learn", "--out", "adapted")
    run(
        *("predict", "adapted/classifier.safetensors", "new"),
        *("--unknown", "0.25", "--out", "labels.csv"),
    )
    rows = csv.DictReader((folder / "labels.csv").read_text().splitlines())
    return {Path(row["image"]).name: (row["label"], float(row["probability"])) for row in rows}


def show(axes: Axes, path: Path, title: str, colour: str = "black") -> None:
    axes.imshow(Image.open(path), cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=11, color=colour)
    axes.set_xticks([])
    axes.set_yticks([])


def curve(axes: Axes) -> None:
    """Figure 1 of the paper on Omniglot: one HIDRA model, and a MAML for each number of ways."""
    record = json.loads((DOCS / "results" / "figure1-omniglot.json").read_text())
    for colour, marker, name in (
        (COLOURS[1], "s", "MAML, one model per number of ways"),
        (COLOURS[0], "o", "HIDRA, one model"),
    ):
        rows = [row for row in record["results"] if row["model"] == name]
        ways = [row["ways"] for row in rows]
        accuracy = [100 * row["accuracy"] for row in rows]
        bars = [100 * row["interval"] for row in rows]
        axes.errorbar(ways, accuracy, bars, color=colour, marker=marker, label=name, lw=2)
    axes.set_xscale("log")
    axes.set_xticks([2, 3, 5, 10, 20, 50], ["2", "3", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("number of classes (ways)")
    axes.set_ylabel("accuracy on Omniglot, 1 shot, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)


def main() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels: Any = figure.subfigures(1, 3, width_ratios=(4, 2.4, 5.6))
    left, middle, right = panels
    with tempfile.TemporaryDirectory() as place:
        learned, others = draw(Path(place))
        answers = labelled(Path(place))
        left.suptitle("a few pictures of each class …", fontsize=12)
        grid = left.subplots(3, len(NAMES))
        for column, name in enumerate(NAMES):
            for row in range(3):
                show(grid[row, column], learned[name][row], name if row == 0 else "")
        middle.suptitle("… label the others", fontsize=12)
        places = middle.subplots(3, 2).flat
        for axes, path in zip_longest(places, others):
            if path is None:
                axes.set_axis_off()
                continue
            label, probability = answers[path.name]
            unknown = label not in NAMES
            title = label if unknown else f"{label}  {100 * probability:.0f} %"
            show(axes, path, title, COLOURS[1] if unknown else COLOURS[2])
        curve(right.subplots())
    figure.savefig(DOCS / "front.png", dpi=100)
    print("written: docs/front.png")


if __name__ == "__main__":
    main()
