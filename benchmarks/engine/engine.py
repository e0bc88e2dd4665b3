"""How fast hidra's engine is, beside `higher`, `torchopt` and a plain autograd loop.

    pip install '.[benchmarks]'
    python benchmarks/engine/engine.py compare --workload 'omniglot-5w1s-4tasks-*-order2-hidra'
    python benchmarks/engine/engine.py curves --out curves

First all contenders must compute the same meta-gradient; only then are they timed, in turn.
A meta-step is one meta-gradient: the outer optimizer is the same for all and not in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Annotated, Any

if __package__ in (None, ""):  # run as a file; last, because the installed package has the kernels
    sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch
import typer

from benchmarks.engine import curves as curve_pictures
from benchmarks.engine.agreement import check, cosine, reference_run, relative_error
from benchmarks.engine.contenders import (
    LIBRARIES,
    REFERENCE,
    Contender,
    find_contenders,
    install_hint,
)
from benchmarks.engine.measuring import (
    interleaved,
    matrix_product,
    peak_in_a_fresh_process,
    work_of,
)
from benchmarks.engine.workloads import WORKLOADS, Case, Workload, find_workloads
from hidra_cli.engine.devices import resolve_device
from hidra_cli.errors import HidraError, UsageError
from hidra_cli.runs.environment import environment
from hidra_cli.system.console import Console
from hidra_cli.system.files import write_atomically, write_json

_RATE_OF_CURVES = 0.01

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)


@dataclass(frozen=True)
class Setup:
    """What is the same for all workloads of one run.

    Attributes:
        memory: whether peak memory is measured, in a process per contender.
    """

    contenders: Mapping[str, Contender]
    missing: Mapping[str, Contender]
    device: torch.device
    threads: int
    repetitions: int
    seed: int
    peers_channels_last: bool
    memory: bool

    def case(self, workload: Workload) -> Case:
        return Case(
            workload,
            self.device,
            peers_channels_last=self.peers_channels_last,
            seed=self.seed,
        )

    def described(self) -> dict[str, Any]:
        found = environment(self.device, {}).to_json()
        packages = {name: contender.package for name, contender in self.contenders.items()}
        found["packages"] |= {
            package: metadata.version(package) for package in packages.values() if package
        }
        return found | {
            "threads": self.threads,
            "seed": self.seed,
            "repetitions": self.repetitions,
            "peers_channels_last": self.peers_channels_last,
            "contenders": {name: c.about for name, c in self.contenders.items()},
            "missing": {name: c.package for name, c in self.missing.items()},
        }


def measure(workload: Workload, setup: Setup, console: Console) -> dict[str, Any]:
    """Check, then measure all contenders on one workload: what the JSON holds of it.

    `errors` are those of the check, `timed_…` those of the timed tasks, jumps in float32 included.

    Raises:
        RunError: a contender disagrees, or fails.
    """
    case = setup.case(workload)
    console.note(f"{workload.name}: comparing meta-gradients")
    errors = check(setup.contenders, case)
    memory = {}
    if setup.memory:
        for name in setup.contenders:
            console.note(f"{workload.name}: memory of {name}")
            memory[name] = asdict(peak_in_a_fresh_process(name, case, setup.threads))
    console.note(f"{workload.name}: timing, rounds: {setup.repetitions}")
    runs = {name: contender.build(case) for name, contender in setup.contenders.items()}
    precisions = sorted({contender.precision for contender in setup.contenders.values()})
    products = {p: matrix_product(setup.device, getattr(torch, p)) for p in precisions}
    calls = dict(runs) | {f"mm {p}": call for p, (call, _) in products.items()}
    seconds = interleaved(calls, setup.device, setup.repetitions, setup.seed)
    rates = {p: flops / median(seconds[f"mm {p}"]) for p, (_, flops) in products.items()}
    work, base, reference = work_of(case), fastest(seconds), reference_run(case)()
    rows = {}
    for name, contender in setup.contenders.items():
        gradients, reached = runs[name](), work / median(seconds[name])
        rows[name] = timing(seconds[name], seconds[base]) | {
            "precision": contender.precision,
            "memory": memory.get(name),
            "flops_per_second": reached,
            "of_matrix_rate": reached / rates[contender.precision],
            "errors": errors.get(name),
            "timed_error": relative_error(gradients, reference),
            "timed_cosine": cosine(gradients, reference),
        }
    head = {"name": workload.name, "workload": asdict(workload), "base": base, "flops": work}
    return head | {"matrix_rates": rates, "contenders": rows}


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """Whom the others are compared with: the fastest library, or the plain loop, or the first."""
    present = [name for name in LIBRARIES if name in seconds]
    present = present or [name for name in (REFERENCE, *seconds) if name in seconds][:1]
    return min(present, key=lambda name: median(seconds[name]))


def timing(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Medians and extremes; `speedup` is the ratio of medians, its extremes those of rounds."""
    rounds = [theirs / own for own, theirs in zip(seconds, base, strict=True)]
    return {
        "seconds": list(seconds),
        "median": median(seconds),
        "minimum": min(seconds),
        "maximum": max(seconds),
        "meta_steps_per_second": 1 / median(seconds),
        "speedup": median(base) / median(seconds),
        "speedup_minimum": min(rounds),
        "speedup_maximum": max(rounds),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The table of one workload."""
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s {p}" for p, rate in found["matrix_rates"].items())
    columns = ["contender", "ms per meta-step", "per s", f"× {found['base']}", "MiB"]
    console.table(
        f"{found['name']}: {found['flops'] / 1e9:.1f} GFLOP; matrix product {rates}",
        [*columns, "GFLOP/s, of mm", "gradient"],
        [_shown(name, row) for name, row in found["contenders"].items()],
    )


def _shown(name: str, row: Mapping[str, Any]) -> list[str]:
    low, middle, high = (row[key] * 1e3 for key in ("minimum", "median", "maximum"))
    slowest, fastest = row["speedup_minimum"], row["speedup_maximum"]
    gradient = f"cosine {row['timed_cosine']:.4f}"
    if row["precision"] == "float32":
        gradient = " ".join(
            "undecided" if error is None else f"{error:.0e}"
            for error in (row["errors"] or {}).values()
        )
    return [
        name,
        f"{middle:.4g} ({low:.4g}–{high:.4g})",
        f"{row['meta_steps_per_second']:.3g}",
        f"{row['speedup']:.2f} ({slowest:.2f}–{fastest:.2f})",
        f"{row['memory']['growth'] / 2**20:.0f}" if row["memory"] else "",
        f"{row['flops_per_second'] / 1e9:.1f}, {row['of_matrix_rate']:.0%}",
        gradient,
    ]


WorkloadNames = Annotated[
    list[str] | None, typer.Option("--workload", help="name, or pattern with *; repeatable")
]
ContenderNames = Annotated[
    list[str] | None, typer.Option("--contender", help="name; repeatable; all without it")
]
Repetitions = Annotated[int, typer.Option(min=1, help="rounds in which each contender runs once")]
Threads = Annotated[int | None, typer.Option(min=1, help="of PyTorch; one per core without it")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda or auto")]
Seed = Annotated[int, typer.Option(help="of images, weights and the order within rounds")]
ChannelsLast = Annotated[
    bool, typer.Option("--peers-channels-last", help="lay the peers' images and weights out so")
]
MemoryFlag = Annotated[
    bool, typer.Option("--memory/--no-memory", help="peak memory, in a process per contender")
]


def _setup(
    contender: list[str] | None,
    repetitions: int,
    threads: int | None,
    device: str,
    seed: int,
    peers_channels_last: bool,
    memory: bool,
    console: Console,
) -> Setup:
    present, missing = find_contenders(contender or [])
    for name, absent in missing.items():
        console.warn(f"{name} is left out: {absent.package} is not installed")
    if missing:
        console.warn(install_hint(missing))
    if threads is not None:
        torch.set_num_threads(threads)
    # A float32 gradient is compared with another: no TF32 in either.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return Setup(
        present,
        missing,
        resolve_device(device),
        torch.get_num_threads(),
        repetitions,
        seed,
        peers_channels_last,
        memory,
    )


@app.command()
def compare(
    workload: WorkloadNames = None,
    contender: ContenderNames = None,
    repetitions: Repetitions = 7,
    threads: Threads = None,
    device: DeviceName = "cpu",
    seed: Seed = 0,
    peers_channels_last: ChannelsLast = False,
    memory: MemoryFlag = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all that was measured to this file")
    ] = None,
) -> None:
    """Measure the contenders on named workloads, all of them without --workload."""
    console = Console()
    setup = _setup(
        contender, repetitions, threads, device, seed, peers_channels_last, memory, console
    )
    found: dict[str, Any] = setup.described() | {"workloads": []}
    for chosen in find_workloads(workload or ["*"]):
        found["workloads"].append(measure(chosen, setup, console))
        show(found["workloads"][-1], console)
        if json_file is not None:  # after each workload: hours may follow
            write_json(json_file, found)


@app.command()
def workloads() -> None:
    """List the workloads' names."""
    print("\n".join(WORKLOADS))


@app.command()
def curves(
    out: Annotated[Path, typer.Option(help="writes OUT.png and OUT.json")] = Path("curves"),
    workload: Annotated[
        str, typer.Option(help="name of the workload that is varied")
    ] = "omniglot-5w1s-4tasks-1steps-order2-hidra",
    ways: Annotated[str, typer.Option(help="comma-separated")] = "2,5,10,20",
    steps: Annotated[str, typer.Option(help="comma-separated")] = "1,2,5,10",
    tasks: Annotated[str, typer.Option(help="comma-separated")] = "1,4,16,32",
    contender: ContenderNames = None,
    repetitions: Repetitions = 5,
    threads: Threads = None,
    device: DeviceName = "cpu",
    seed: Seed = 0,
    peers_channels_last: ChannelsLast = False,
) -> None:
    """Draw time per meta-step and peak memory over ways, inner steps and tasks."""
    console = Console()
    setup = _setup(
        contender, repetitions, threads, device, seed, peers_channels_last, True, console
    )
    chosen = find_workloads([workload])
    if len(chosen) > 1:
        raise UsageError(f"{workload!r} is the name of {len(chosen)} workloads, curves vary one")
    # Many steps at a large rate lose the gradient in rounding; time does not depend on it.
    start = replace(chosen[0], inner_lr=_RATE_OF_CURVES)
    found: dict[str, Any] = setup.described() | {"workload": asdict(start), "axes": {}}
    measured: dict[Workload, dict[str, Any]] = {}
    for axis, values in {"ways": ways, "steps": steps, "tasks": tasks}.items():
        points = found["axes"][axis] = []
        for value in _numbers(values):
            varied: dict[str, Any] = {axis: value}
            at = replace(start, **varied)
            if at not in measured:  # the start is a point of all three
                measured[at] = measure(at, setup, console)
            points.append(measured[at])
        write_json(out.with_suffix(".json"), found)
    write_atomically(out.with_suffix(".png"), curve_pictures.picture(found))
    console.print(f"{out.with_suffix('.png')} and {out.with_suffix('.json')} are written")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{text!r} is no list of positive numbers", fix="such as 1,2,5")
    return numbers


def main(arguments: list[str] | None = None) -> None:
    """Run a command line; errors are told as hidra tells them, with its exit codes."""
    try:
        app(args=arguments)
    except HidraError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from None


if __name__ == "__main__":
    main()
