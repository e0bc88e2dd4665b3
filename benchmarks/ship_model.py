"""Make the model that ships with hidra from a run: its best checkpoint without the optimizer.

python benchmarks/ship_model.py RUN data/models/NAME.safetensors
"""

import sys
from pathlib import Path

from hidra_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from hidra_cli.runs.locate import find_checkpoint


def main(run: Path, target: Path) -> None:
    checkpoint = load_checkpoint(find_checkpoint(run))
    weights = {n: t for n, t in checkpoint.tensors.items() if n.startswith("model.")}
    save_checkpoint(target, weights, checkpoint.meta)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
