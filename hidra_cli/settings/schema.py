"""The settings of a run as pydantic's models: declarations that are converted and checked.

Precedence: flag > `HIDRA_<SECTION>_<KEY>` variable > `--config` file > `--preset` > default. The
layers' options of one plugin are merged; a layer that names another plugin drops them.
"""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from hidra_cli.api.options import literal_choice
from hidra_cli.settings import declarations

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


class _FromText:
    """Flags and variables are text."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.__dataclass_fields__[str(info.field_name)].type
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError("true and false are not expected here")
        return literal_choice(annotation, value)


@dataclass(config=_CONFIG, frozen=True, kw_only=True)
class DatasetSettings(_FromText, declarations.Dataset):
    """Checked values of the section."""


@dataclass(config=_CONFIG, frozen=True, kw_only=True)
class TaskSettings(_FromText, declarations.Tasks):
    """Checked values of the section."""


@dataclass(config=_CONFIG, frozen=True, kw_only=True)
class ModelSettings(_FromText, declarations.Model):
    """Checked values of the section."""


@dataclass(config=_CONFIG, frozen=True, kw_only=True)
class InnerSettings(_FromText, declarations.InnerLoop):
    """Checked values of the section."""

    @property
    def steps_at_test(self) -> int:
        """Inner steps for validation, evaluation and adaptation."""
        return self.steps if self.test_steps is None else self.test_steps


@dataclass(config=_CONFIG, frozen=True, kw_only=True)
class OuterSettings(_FromText, declarations.OuterLoop):
    """Checked values of the section."""


@dataclass(config=_CONFIG, frozen=True, kw_only=True)
class RunSettings(_FromText, declarations.Run):
    """Checked values of the section."""

    @field_validator("strategy", mode="before")
    @classmethod
    def _older_name(cls, value: Any) -> Any:
        """Runs from before CUDA graphs were recorded directly say "compiled"."""
        return "captured" if value == "compiled" else value


class Settings(BaseModel):
    """All settings of a meta-training run, as recorded in its `config.toml`."""

    model_config = ConfigDict(frozen=True, **_CONFIG)

    dataset: DatasetSettings = DatasetSettings()
    tasks: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    inner: InnerSettings = InnerSettings()
    outer: OuterSettings = OuterSettings()
    run: RunSettings = RunSettings()

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))
