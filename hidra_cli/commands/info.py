"""`hidra info`: versions, devices and places, as a bug report needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hidra_cli.commands import flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


@flags.with_console
def info(
    console: Console,
    cache_dir: flags.CacheDir = None,
    runs_dir: flags.RunsDir = None,
) -> None:
    """Show versions, devices, caches and prepared datasets."""
    import torch

    from hidra_cli.errors import DataError
    from hidra_cli.images.cache import cache_dir as resolve_cache
    from hidra_cli.runs.environment import environment
    from hidra_cli.runs.locate import latest_run, runs_dir_of, shipped_models

    cache = resolve_cache(cache_dir)
    runs = runs_dir_of(runs_dir)
    try:
        latest = str(latest_run(runs))
    except DataError:
        latest = ""
    facts = environment(torch.device("cpu"), {}).to_json()
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    shipped = shipped_models()
    stores = sorted((cache / "stores").glob("*.h5"))
    rows = [
        ["hidra-cli", facts["hidra-cli"]],
        ["python", facts["python"]],
        *([name, version] for name, version in facts["packages"].items()),
        ["platform", facts["platform"]],
        ["processor", f"{facts['processor']}, {facts['cores']} cores"],
        ["threads", f"{facts['threads']} (OMP_NUM_THREADS sets them)"],
        ["CPU capability", facts["cpu_capability"]],
        ["compiled kernels", "yes" if facts["kernels"] else "no: training on the CPU is slower"],
        ["CUDA devices", ", ".join(cuda) or "none"],
        ["cache", str(cache)],
        ["runs", str(runs)],
        ["latest run", latest or "none"],
        *(["shipped model", f"{name} ({_megabytes(path)})"] for name, path in shipped.items()),
        *(["prepared", f"{path.name} ({_megabytes(path)})"] for path in stores),
    ]
    console.table("hidra", ["what", "value"], rows, left=2)
    if not facts["kernels"]:
        console.note(
            "compiled kernels: normalization and pooling as one pass on the CPU. They are built at "
            "installation where there is a C++ compiler: install one (g++ or clang++; Xcode's "
            "tools; Visual Studio's), then install hidra again (pip install --force-reinstall "
            "--no-deps .)"
        )
    console.result(
        {
            "hidra-cli": facts["hidra-cli"],
            "python": facts["python"],
            "packages": facts["packages"],
            "platform": facts["platform"],
            "processor": facts["processor"],
            "cores": facts["cores"],
            "threads": facts["threads"],
            "cpu_capability": facts["cpu_capability"],
            "kernels": facts["kernels"],
            "cuda": cuda,
            "cache": str(cache),
            "runs": str(runs),
            "latest_run": latest or None,
            "shipped_models": {name: str(path) for name, path in shipped.items()},
            "prepared": [str(path) for path in stores],
        }
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
