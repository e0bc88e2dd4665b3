"""Real data, small images and tiny glyphs, and running the command line in this process."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hidra_cli.app import main
from hidra_cli.images.open import choose_dataset, open_images, prepare_images
from hidra_cli.images.prepared import PreparedImages
from hidra_cli.settings.schema import DatasetSettings
from hidra_cli.system.console import Console

# Programs that tests start import the installed package as tests do, not the folder they are in.
os.environ["PYTHONSAFEPATH"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # every core has a test of its own
    os.environ["OMP_NUM_THREADS"] = "1"

TINY_OPTIONS = {"alphabets": 4, "characters": 12, "drawings": 8, "size": 16}
TINY = DatasetSettings(name="glyphs", options=TINY_OPTIONS)
TINY_DATA = [f"--data-opt={name}={value}" for name, value in TINY_OPTIONS.items()]
TINY_MODEL = ["--bb-opt=filters=8", "--queries=3", "--meta-batch=2"]
TINY_RUN = [
    *TINY_DATA,
    *TINY_MODEL,
    "--iterations=4",
    "--validate-every=2",
    "--validation-episodes=4",
    "--test-episodes=4",
]
WriteImage = Callable[[Path], Path]


def _real(*parts: str) -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    root = Path(os.environ.get("TEST_DATASETS") or beside)
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{Path(*parts)} is not in {root}; set TEST_DATASETS to its folder")
    return path


@pytest.fixture(scope="session")
def real_omniglot() -> Path:
    """Folder with images_background.zip and images_evaluation.zip."""
    for half in ("images_background.zip", "images_evaluation.zip"):
        _real("omniglot", half)
    return _real("omniglot")


@pytest.fixture(scope="session")
def real_cifar100() -> Path:
    """Zip of cifar100/{train,test}/<class>/*.png."""
    return _real("cifar100", "cifar100.zip")


@pytest.fixture(scope="session")
def real_grocery() -> Path:
    """Zip of grocery/<class>/*.jpg: photographs of 81 classes of goods in a shop."""
    return _real("grocery", "grocery.zip")


@pytest.fixture(scope="session")
def png() -> bytes:
    """A small PNG image."""
    buffer = io.BytesIO()
    Image.new("L", (8, 6), 90).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def write_image() -> WriteImage:
    """`write_image(path)` makes a small image, in the format of the name, and its folders."""

    def write(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = Image.registered_extensions()[path.suffix.lower()]
        Image.new("RGB", (8, 6), (200, 30, 60)).save(path, kind)
        return path

    return write


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the tiny glyphs of `TINY`, prepared once for all tests."""
    cache = tmp_path_factory.mktemp("cache")
    console = Console(verbosity=-1)
    prepare_images(choose_dataset(TINY), cache, console, workers=1)
    return cache


@pytest.fixture(scope="session")
def tiny_images(cache_dir: Path) -> PreparedImages:
    """The tiny glyphs, opened."""
    return open_images(TINY, cache_dir, Console(verbosity=-1))


@pytest.fixture(autouse=True, scope="module")
def no_process_left() -> Iterator[None]:
    """Whoever starts others, they are gone with the module."""
    yield
    if (strategies := sys.modules.get("hidra_cli.engine.strategies.cores")) is not None:
        strategies.POOL.stop()


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Hidra = Callable[..., Finished]


@pytest.fixture
def hidra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hidra:
    """`hidra("evaluate", run, "--json")` runs a command line and says how it ended."""

    def run(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["hidra", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Finished(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A folder with the finished runs `hidra` (2-5 ways), `maml3` and `zero` (2-5 ways)."""
    runs = tmp_path_factory.mktemp("runs")
    for name, head, ways in (
        ("hidra", "hidra", "2-5"),
        ("maml3", "maml", "3"),
        ("zero", "zero", "2-5"),
    ):
        arguments = [
            *TINY_RUN,
            f"--name={name}",
            f"--head={head}",
            f"--ways={ways}",
            "-q",
            f"--cache-dir={cache_dir}",
            f"--runs-dir={runs}",
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hidra", "meta-train", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        assert not ended.value.code
    return runs


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that even root cannot write to."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        return
    yield from mounted(folder, "size=1m,ro")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    yield from mounted(folder, "size=256k")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, where the system lets us."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
