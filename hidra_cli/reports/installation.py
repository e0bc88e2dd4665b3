"""Versions, devices and places as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hidra_cli.jobs.info import Installation
    from hidra_cli.system.console import Console

_HOW_TO_GET_KERNELS = (
    "compiled kernels: normalization and pooling as one pass on the CPU. They are built at "
    "installation where there is a C++ compiler: install one (g++ or clang++; Xcode's tools; "
    "Visual Studio's), then install hidra again (pip install --force-reinstall --no-deps .)"
)


def show_installation(here: Installation, console: Console) -> None:
    """Print versions, devices and places."""
    facts = here.environment
    kernels = "yes" if facts["kernels"] else "no: training on the CPU is slower"
    shipped = here.shipped_models.items()
    rows = [
        ["hidra-cli", facts["hidra-cli"]],
        ["python", facts["python"]],
        *([name, version] for name, version in facts["packages"].items()),
        ["platform", facts["platform"]],
        ["processor", f"{facts['processor']}, {facts['cores']} cores"],
        ["threads", f"{facts['threads']} (OMP_NUM_THREADS sets them)"],
        ["CPU capability", facts["cpu_capability"]],
        ["compiled kernels", kernels],
        ["CUDA devices", ", ".join(here.cuda) or "none"],
        ["cache", here.cache],
        ["runs", here.runs],
        ["latest run", here.latest_run or "none"],
        *(["shipped model", f"{name} ({_megabytes(Path(path))})"] for name, path in shipped),
        *(["prepared", f"{path.name} ({_megabytes(path)})"] for path in map(Path, here.prepared)),
    ]
    console.table("hidra", ["what", "value"], rows, left=2)
    if not facts["kernels"]:
        console.note(_HOW_TO_GET_KERNELS)
    console.result(here.to_json())


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
