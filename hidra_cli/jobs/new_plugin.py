"""The package that `hidra plugins new` writes: complete, tested, and small enough to change.

Its files are made from those in `data/plugin_templates`; the tests install each kind and train
with it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Literal

from hidra_cli.api.registry import Kind

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_WORDS = {"functions": "family of functions"}
_REQUIREMENTS = {
    "head": '"hidra-cli", "torch"',
    "backbone": '"hidra-cli", "torch"',
    "dataset": '"hidra-cli"',
    "functions": '"hidra-cli", "numpy"',
}
_LONGEST = 25  # keeps every line of code within 100 columns


def fault_of(name: str) -> str:
    """Why a name cannot be a plugin's, or an empty string."""
    if not _NAME.fullmatch(name):
        return "a name has small letters a-z, digits and single hyphens, and begins with a letter"
    if len(name) > _LONGEST:
        return f"a name has at most {_LONGEST} characters, this one has {len(name)}"
    return ""


class _Template(Template):
    """A text with `PluginName` in place of `$name`, so that the code can be linted and typed."""

    delimiter = "Plugin"
    idpattern = "[A-Z][a-z]+"
    flags = re.NOFLAG


@dataclass(frozen=True)
class Skeleton:
    """One plugin package, not yet written."""

    kind: Literal["head", "backbone", "dataset", "functions"]
    name: str

    @property
    def registered(self) -> Kind:
        """The kind that it is installed as: a family of functions is a dataset."""
        return "dataset" if self.kind == "functions" else self.kind

    @property
    def distribution(self) -> str:
        """`hidra-NAME-KIND`; a name that ends with its kind does not say it twice."""
        return f"hidra-{self.name.removesuffix(f'-{self.kind}')}-{self.kind}"

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        parts = self.distribution.split("-")[1:]
        return "".join(part.capitalize() for part in parts)

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run in the package, in order."""
        use = {
            "head": f"hidra meta-train --head {self.name}",
            "backbone": f"hidra meta-train --backbone {self.name}",
            "dataset": f"hidra prepare {self.name} --source FOLDER",
            "functions": f"hidra meta-train --dataset {self.name} --backbone mlp --loss mse",
        }
        check = f"hidra plugins check {self.registered} {self.name}"
        check += " --source FOLDER" * (self.kind == "dataset")
        return ("pip install -e '.[test]'", "python -m pytest", check, use[self.kind])

    def files(self) -> dict[str, str]:
        """Path inside the package → text."""
        templates = resources.files("hidra_data") / "plugin_templates"
        values = {
            "Kind": _WORDS.get(self.kind, self.kind),
            "Name": self.name,
            "Distribution": self.distribution,
            "Module": self.module,
            "Class": self.class_name,
            "Group": f"hidra.{self.registered}s",
            "Requirements": _REQUIREMENTS[self.kind],
            "Commands": "\n".join(self.commands),
        }
        sources = {
            "pyproject.toml": "pyproject.template.toml",
            "README.md": "README.template.md",
            f"{self.module}.py": f"{self.kind}.py",
            f"tests/test_{self.module}.py": f"test_{self.kind}.py",
        }
        return {
            path: _Template((templates / source).read_text("utf-8")).substitute(values)
            for path, source in sources.items()
        }

    def write(self, folder: Path) -> None:
        """Write the package beside its place and rename it, so that it is there whole or not.

        Args:
            folder: of the package; must not exist.

        Raises:
            OSError: it exists, or cannot be written; nothing is left.
        """
        if os.path.lexists(folder):
            raise FileExistsError(f"{folder} exists")
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            for path, text in self.files().items():
                (beside / path).parent.mkdir(parents=True, exist_ok=True)
                (beside / path).write_text(text, encoding="utf-8")
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
