"""Where the real data sets are, and small images made by the tests."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hidra_cli.commands import common
from hidra_cli.components import choose_dataset
from hidra_cli.console import Console
from hidra_cli.settings import DatasetSettings
from hidra_cli.store.reader import PreparedImages

TINY_OPTIONS = {"alphabets": 6, "characters": 6, "drawings": 8, "size": 16}
TINY = DatasetSettings(name="glyphs", options=TINY_OPTIONS)
WriteImage = Callable[[Path], Path]


def _real(*parts: str) -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    root = Path(os.environ.get("HIDRA_TEST_DATA") or beside)
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{Path(*parts)} is not in {root}; set HIDRA_TEST_DATA to its folder")
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
    common.prepare_images(choose_dataset(TINY), cache, console, workers=1)
    return cache


@pytest.fixture(scope="session")
def tiny_images(cache_dir: Path) -> PreparedImages:
    """The tiny glyphs, opened."""
    return common.open_images(TINY, cache_dir, Console(verbosity=-1))
