"""Adapted classifiers as programs that run without hidra: ONNX, or torch.export.

Shapes: n images (n, C, H, W) in [0, 1] → class probabilities (n, N), for any n.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from hidra_cli import __version__
from hidra_cli.api.registry import OWN_DISTRIBUTION, Kind, Plugin, find, remedy
from hidra_cli.engine.devices import memory_errors
from hidra_cli.errors import RunError, UsageError
from hidra_cli.jobs.classifier import (
    CLASSIFIER_FORMAT,
    Classifier,
    find_classifier,
    restore_classifier,
)
from hidra_cli.runs.checkpoint import Checkpoint, load_checkpoint
from hidra_cli.system.files import check_file, check_other_file, write_atomically

Format = Literal["onnx", "pt2"]
Run = Callable[[Tensor], Tensor]

EXPORT_FORMAT_VERSION = 2
TOLERANCE = 1e-4  # between probabilities
_BATCHES = (1, 2, 7, 32)
_TRACED_WITH = 3  # images; torch treats 0 and 1 as special
_SEED = 0


@dataclass(frozen=True)
class Exported:
    """A program that was run beside the classifier it was made from.

    Attributes:
        content: of the file.
        difference: the largest, absolute, between their probabilities.
        batches: the numbers of images predicted together.
    """

    content: bytes
    difference: float
    batches: tuple[int, ...]


@dataclass(frozen=True)
class ExportedClassifier:
    """A classifier and the file of its program.

    Attributes:
        source: the classifier's file, or a folder of one.
        path: the program's file.
        classifier: as it was exported: in float32.
        precision: that the classifier predicts in.
    """

    source: Path
    path: Path
    form: Format
    classifier: Classifier
    precision: str
    program: Exported

    def to_json(self) -> dict[str, Any]:
        classifier, program = self.classifier, self.program
        return {
            "classifier": str(self.source),
            "exported": str(self.path),
            "format": self.form,
            "bytes": len(program.content),
            "classes": list(classifier.classes),
            "image_shape": list(classifier.preprocessing.image_shape),
            "invert": classifier.preprocessing.invert,
            "normalization": classifier.normalization,
            "largest_difference": program.difference,
            "images_compared": sum(program.batches),
            "batch_sizes": list(program.batches),
        }


def export_classifier(source: Path, out: Path | None, form: Format | None) -> ExportedClassifier:
    """Write a classifier as a program.

    Args:
        source: the classifier's file.
        out: the program's file; None: beside the classifier, with the same name.
        form: None: as `out` is called, or ONNX.

    Raises:
        UsageError: `out` is a folder, the classifier itself or has another ending; no ONNX here.
        DataError: the classifier is missing or damaged.
        RunError, DeviceError: as `export`.
    """
    source = find_classifier(source)
    form = form or ("pt2" if out is not None and out.suffix == ".pt2" else "onnx")
    path = out or source.with_suffix(f".{form}")
    check_other_file(path, "the classifier itself", source)
    check_file(path, "--out", f".{form}")
    if form == "onnx":
        require_onnx()
    checkpoint = load_checkpoint(source, CLASSIFIER_FORMAT)
    classifier = restore_classifier(checkpoint)
    precision = classifier.learner.precision
    if precision != "float32":
        classifier = in_float32(classifier)
    program = export(classifier, checkpoint, form)
    write_atomically(path, program.content)
    return ExportedClassifier(source, path, form, classifier, precision, program)


def require_onnx() -> None:
    """Check that what ONNX needs is installed.

    Raises:
        UsageError: it is not.
    """
    try:
        with _quiet():
            for name in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(name)
    except ImportError as exc:
        raise UsageError(
            "ONNX files cannot be written here",
            why=str(exc).split("\n")[0],
            fix="pip install 'hidra-cli[onnx]', or --format pt2, which needs nothing more",
        ) from exc


def in_float32(classifier: Classifier) -> Classifier:
    """The same weights, without autocast."""
    learner = copy.copy(classifier.learner)
    learner.precision = "float32"
    return replace(classifier, learner=learner)


def export(classifier: Classifier, checkpoint: Checkpoint, form: Format) -> Exported:
    """Trace a classifier, on the CPU, and check the program by running it.

    Args:
        classifier: predicts in float32.
        checkpoint: it was restored from.
        form: of the content.

    Raises:
        RunError: a plugin's code cannot be traced, or the program predicts something else.
        DeviceError: out of memory.
    """
    with memory_errors("close other programs"):
        facts = metadata(classifier, checkpoint)
        try:
            content = _written(_Probabilities(classifier), classifier, form, facts)
        except MemoryError:
            raise
        except _NoOnnxError as exc:
            raise _not_onnx(_at_fault(classifier, checkpoint, form), exc) from exc
        except Exception as exc:  # whatever a plugin's code, or tracing it, raises
            raise _untraceable(_at_fault(classifier, checkpoint, form), exc) from exc
        batches = _BATCHES[_smallest_batch(classifier) - 1 :]
        images = _images(classifier, checkpoint, sum(batches))
        difference = _difference(content, form, classifier, torch.split(images, list(batches)))
    if not difference <= TOLERANCE:  # NaN is no smaller
        raise RunError(
            f"the exported program is not the classifier: they differ by {difference:.1e}",
            why=f"probabilities may differ by {TOLERANCE:.0e}; a head or backbone that draws "
            "random numbers or keeps a memory while it predicts cannot be exported",
            fix="use `hidra predict`",
        )
    return Exported(content, difference, batches)


def _difference(
    content: bytes, form: Format, classifier: Classifier, batches: Sequence[Tensor]
) -> float:
    """The largest absolute difference between the probabilities of program and classifier."""
    expected = [classifier.probabilities(images) for images in batches]
    try:
        run = _onnx_runner(content) if form == "onnx" else _pt2_runner(content)
        actual = [run(images) for images in batches]
        gaps = [f - e for f, e in zip(actual, expected, strict=True)]
    except Exception as exc:
        raise RunError(
            "the exported program does not run as the classifier does",
            why=_reason(exc),
            fix="try the other --format, or use `hidra predict`",
        ) from exc
    return float(torch.cat([gap.abs().flatten() for gap in gaps]).max())


def metadata(classifier: Classifier, checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of the program's file, each value as JSON."""
    origin = checkpoint.classifier_meta.model_dump(
        include={"plugins", "dataset_hash", "network", "iteration", "steps"}, exclude_none=True
    )
    facts = {
        "hidra_export": EXPORT_FORMAT_VERSION,
        "classes": list(classifier.classes),
        "image_shape": list(classifier.preprocessing.image_shape),
        "invert": classifier.preprocessing.invert,
        "preprocessing": classifier.preprocessing.record(),
        "normalization": classifier.normalization,
        "smallest_batch": _smallest_batch(classifier),
        "provenance": {
            "classifier": checkpoint.path.name,
            "hidra": __version__,
            "torch": str(torch.__version__),
            **origin,
        },
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def _smallest_batch(classifier: Classifier) -> int:
    """How many images must be predicted together for their statistics to mean anything."""
    return 2 if classifier.normalization == "transductive" else 1


class _Probabilities(nn.Module):
    """`Classifier.probabilities` as a module; weights and statistics become constants."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.probabilities(images)


class _Features(_Probabilities):
    """The backbone's part of it."""

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.learner.features(self.classifier.weights.body, images)


class _NoOnnxError(Exception):
    """ONNX has no operation for something that was traced."""


def _written(
    module: nn.Module, classifier: Classifier, form: Format, facts: dict[str, str]
) -> bytes:
    """Trace a module and give the content of its file."""
    with _quiet(), torch.no_grad():
        images = torch.zeros(_TRACED_WITH, *classifier.preprocessing.image_shape)
        batch = Dim("n", min=_smallest_batch(classifier))
        program = torch.export.export(
            module.eval(), (images,), dynamic_shapes=({0: batch},), strict=False
        )
        _forget_source(program)
        if form == "onnx":
            return _as_onnx(program, facts)
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=facts)
    return file.getvalue()


def _as_onnx(program: ExportedProgram, facts: dict[str, str]) -> bytes:
    try:
        converted = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: "n"},),
            dynamo=True,
            verbose=False,
        )
        model = converted.model_proto  # type: ignore[union-attr]
        for name, value in facts.items():
            model.metadata_props.add(key=name, value=value)
        content: bytes = model.SerializeToString()
    except Exception as exc:
        raise _NoOnnxError from exc
    return content


def _forget_source(program: ExportedProgram) -> None:
    """Leave out the lines of code, and with them the paths, that operations came from."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _onnx_runner(content: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
        return torch.from_numpy(probabilities)

    return run


def _pt2_runner(content: bytes) -> Run:
    with _quiet():
        program = torch.export.load(io.BytesIO(content))
    module = program.module()

    def run(images: Tensor) -> Tensor:
        probabilities: Tensor = module(images)
        return probabilities

    return run


def _images(classifier: Classifier, checkpoint: Checkpoint, count: int) -> Tensor:
    """Images to compare on, mixed: support pictures where the file keeps some, and noise."""
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.rand(count, *classifier.preprocessing.image_shape, generator=generator)
    kept = checkpoint.part("support").get("images", torch.empty(0))
    if kept.shape[1:] == images.shape[1:]:
        places = torch.randperm(len(kept), generator=generator)[: count // 2]
        images[: len(places)] = kept[places].float().div(255)
    return images[torch.randperm(count, generator=generator)]


def _at_fault(classifier: Classifier, checkpoint: Checkpoint, form: Format) -> Plugin:
    """Whose code cannot be exported: the backbone's if it fails by itself, else the head's."""
    model = checkpoint.classifier_meta.settings.model
    kind: Kind = "head"
    try:
        _written(_Features(classifier), classifier, form, {})
    except Exception:
        kind = "backbone"
    return find(kind, model.backbone if kind == "backbone" else model.head)


def _untraceable(plugin: Plugin, exc: Exception) -> RunError:
    return RunError(
        f"{plugin.label} cannot be exported",
        why=f"torch.export cannot trace its code: {_reason(exc)}",
        fix="its code must use tensor operations alone, the same for any values and any number of "
        f"images; ask the authors of {plugin.distribution}, or use `hidra predict`"
        if plugin.distribution != OWN_DISTRIBUTION
        else remedy(plugin),
    )


def _not_onnx(plugin: Plugin, exc: Exception) -> RunError:
    return RunError(
        f"{plugin.label} cannot be written as ONNX",
        why=_reason(exc),
        fix="--format pt2 takes whatever torch.export can trace",
    )


def _reason(exc: BaseException) -> str:
    """The first line of what was raised first."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {exc}".strip().split("\n")[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what tracing and converting print, log and warn of from the user."""
    before: Any = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
