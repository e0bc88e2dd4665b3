"""A head with dropout: at work in meta-training alone, so that every answer can be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ..api.test_plugin_faults import HEAD, Install, changed
from ..api.test_plugin_faults import install as install  # a fixture
from ..conftest import TINY_RUN, Hidra

_LOGITS = 'return features @ fast_weights["weight"].T'
_DROPOUT = "features = torch.nn.functional.dropout(features, 0.5, self.training)"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of three pictures."""
    for name, ink in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.new("L", (16, 16), ink)
            picture.putpixel((number, number), 255 - ink)
            picture.save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_evaluate_adapt_predict_and_export_give_the_same_bits_twice(
    hidra: Hidra, install: Install, cache_dir: Path, tmp_path: Path, pictures: Path
) -> None:
    install("head", "dropping", changed(HEAD, _LOGITS, f"{_DROPOUT}\n        {_LOGITS}"))
    places = ["--cache-dir", cache_dir, "--json", "-q"]
    run = tmp_path / "runs" / "one"
    flags = [*TINY_RUN, "--head=dropping", "--ways=2-4", "--runs-dir", run.parent]
    for name in ("one", "two"):
        done = hidra("meta-train", *flags, *places, f"--name={name}")
        assert done.code == 0, done.err
    metrics = [(run.parent / name / "metrics.csv").read_text() for name in ("one", "two")]
    columns = [[row.split(",")[3:6] for row in text.splitlines()] for text in metrics]
    assert columns[0] == columns[1], "training draws the same for one seed"

    test = ["evaluate", run, "--ways=2,5", "--episodes=5", "--queries=3", *places]
    scores = [hidra(*test).json["results"] for _ in range(2)]
    assert scores[0] == scores[1]

    made, answers = [], []
    for name in ("first", "second"):
        given = ["--support", pictures, "--checkpoint", run, "--out", tmp_path / name, "--json"]
        adapted = hidra("adapt", *given)
        assert adapted.code == 0, adapted.err
        made.append(Path(adapted.json["classifier"]))
        predict = ["predict", made[-1], pictures, "--json"]
        answers += [hidra(*predict).json["predictions"] for _ in range(2)]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert all(answer == answers[0] for answer in answers)
    done = hidra("export", made[0], "--format=pt2", "--out", tmp_path / "made.pt2", "--json")
    assert done.code == 0, done.err
