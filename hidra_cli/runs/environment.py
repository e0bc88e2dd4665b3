"""What a result depends on beside its settings: versions, hardware, command."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

from hidra_cli import __version__
from hidra_cli.api import registry
from hidra_cli.engine.kernels import pooled_moments
from hidra_cli.runs.records import Environment, PluginRecord


def environment(
    device: torch.device, plugins: Mapping[registry.Kind, PluginRecord], processes: int = 1
) -> Environment:
    """What a result depends on beside its settings: versions, hardware, command."""
    return Environment(
        hidra_cli=__version__,
        python=platform.python_version(),
        packages={name: metadata.version(name) for name in _recorded_packages()},
        plugins=dict(plugins),
        platform=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        processes=processes,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        kernels=pooled_moments.compiled(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def _recorded_packages() -> Iterable[str]:
    return ("torch", "torchvision", "numpy", "pillow", "h5py", "safetensors", "pydantic")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
