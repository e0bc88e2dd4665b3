"""The page: sections in the order a reader asks, each left out where there is nothing to say.

Its markup is in `html/page.html.j2`, its look in `html/page.css`; here is what it says.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hidra_cli import __version__
from hidra_cli.reports import page_sections as sections
from hidra_cli.reports.collect import Report
from hidra_cli.reports.page_sections import Table, counted
from hidra_cli.reports.run_facts import RunFacts, clipped, training_seconds
from hidra_cli.reports.solved_tasks import NO_LABEL
from hidra_cli.runs import records
from hidra_cli.settings.numbers import format_numbers
from hidra_cli.settings.schema import Settings
from hidra_cli.system.console import printable
from hidra_cli.tasks.objective import CLASSIFICATION


def render(report: Report) -> bytes:
    """One file: no script, nothing fetched, and a policy that says so to the browser."""
    templates = Environment(
        loader=PackageLoader("hidra_cli.reports", "html"),
        autoescape=True,  # text from files cannot become markup
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    names = {"counted": counted, "class_key": _class_key, "NO_LABEL": NO_LABEL, "zip": zip}
    templates.globals |= names
    style = (resources.files("hidra_cli.reports") / "html" / "page.css").read_text("utf-8")
    page = templates.get_template("page.html.j2").render(
        report=report,
        alone=report.runs[0] if len(report.runs) == 1 else None,
        lead=_lead,
        state=_state,
        facts=_fact_rows,
        runs=_runs(report),
        differences=sections.differences(report),
        accuracy=sections.accuracy(report),
        curves=sections.curves(report),
        settings=_settings(report),
        environments=_environments(report),
        style=Markup(style),
        policy=_policy(style),
        version=__version__,
    )
    return page.encode()


def _shown(value: Any) -> Any:
    """Text from a file with its control characters as what they are."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _class_key(label: int, ways: int) -> str:
    """A short name for a class of a task."""
    if label == NO_LABEL:
        return "none"
    return chr(ord("A") + label) if ways <= 26 else str(label + 1)


def _runs(report: Report) -> Table:
    """A line for each of several runs."""
    columns = ["", *report.names]
    per_run = [_fact_rows(facts) for facts in report.runs]
    keys = dict.fromkeys(key for rows in per_run for key in rows)
    rows: list[list[str]] = [["State", *(_state(facts) for facts in report.runs)]]
    rows += [[key, *(rows.get(key, "–") for rows in per_run)] for key in keys]
    return Table("The runs", columns, rows, left=len(columns))


def _lead(facts: RunFacts) -> str:
    """The run and how good its model is, in a sentence or two."""
    sentences = []
    if facts.settings is not None:
        s = facts.settings.settings
        sentences.append(
            f"The head {clipped(s.model.head)} on the backbone {clipped(s.model.backbone)}, "
            f"meta-trained on {clipped(s.dataset.name)} with {_ways(s)} ways and {_shots(s)} per "
            "class."
        )
    if facts.tested is not None:
        row = min(facts.tested.rows, key=lambda r: (abs(r.ways - 5), r.shots))
        shown = CLASSIFICATION.interval(row.score, row.interval)
        chance = f"chance: {100 / row.ways:.3g} %"
        sentences.append(f"Test accuracy at {row.ways} ways: {shown} % ({chance}).")
    return " ".join(sentences)


def _ways(settings: Settings) -> str:
    return clipped(format_numbers(settings.tasks.ways).replace("-", "–"))


def _shots(settings: Settings) -> str:
    shots = clipped(format_numbers(settings.tasks.shots).replace("-", "–"))
    return f"{shots} support image" + ("" if shots == "1" else "s")


def _state(facts: RunFacts) -> Markup:
    done = facts.metrics.last
    if facts.finished:
        kind, said = "finished", f"✓ Finished: {counted(done, 'iteration')}"
    else:
        wanted = facts.settings.settings.outer.iterations if facts.settings else None
        of = f" of {wanted:,}" if wanted is not None else ""
        why = "its result is of fewer" if facts.run.result.exists() else "no result"
        kind = "unfinished"
        said = f"◌ Unfinished: {done:,}{of} iterations, {why} (running, or stopped)"
    return Markup('<span class="state {}">{}</span>').format(kind, said)


def _fact_rows(facts: RunFacts) -> dict[str, str]:
    rows: dict[str, str] = {}
    if facts.settings is not None:
        s = facts.settings.settings
        data = facts.environment.dataset if facts.environment else None
        schedule = "" if s.outer.schedule == "constant" else f", {s.outer.schedule} schedule"
        rates = "rate" if s.inner.rates == "given" else "rates learned from"
        rows |= {
            "Dataset": (data or {}).get("title") or s.dataset.name,
            "Head": s.model.head,
            "Backbone": s.model.backbone,
            "Ways": _ways(s),
            "Shots": clipped(format_numbers(s.tasks.shots)),
            "Normalization": s.model.normalization,
            "Loss": s.model.loss if s.model.loss != "softmax" else "",
            "Inner loop": f"{counted(s.inner.steps, 'step')}, {rates} {s.inner.inner_lr:g}, order "
            f"{s.inner.order}, adapts {s.inner.adapt}",
            "Outer loop": f"Adam, rate {s.outer.outer_lr:g}{schedule}, "
            f"{s.outer.meta_batch} tasks per step",
        }
    if (best := facts.best) is not None:
        shown = CLASSIFICATION.interval(best.score, best.interval)
        rows["Best validation"] = f"{shown} % after iteration {best.iteration:,}"
    elif facts.metrics.validation:
        iteration, mean, half = max(facts.metrics.validation, key=lambda v: (v[1], -v[0]))
        shown = CLASSIFICATION.interval(mean, half)
        rows["Best validation"] = f"{shown} % after iteration {iteration:,}, so far"
    rows |= _when_and_where(facts)
    return {key: clipped(value) for key, value in rows.items() if value}


def _when_and_where(facts: RunFacts) -> dict[str, str]:
    ran, seconds = facts.environment or records.Environment(), training_seconds(facts)
    hardware = [ran.device if ran.device != "cpu" else "", ran.processor]
    hardware += [f"{ran.cores} cores" if ran.cores else ""]
    versions = [
        ("hidra-cli", ran.hidra_cli),
        ("torch", (ran.packages or {}).get("torch")),
        ("Python", ran.python),
    ]
    times = len(ran.resumed or ())
    return {
        "Started": _moment(ran.started) + (f", resumed {times}×" if times else ""),
        "Training steps": "" if seconds is None else f"{_duration(seconds)} in all",
        "Hardware": ", ".join(clipped(part) for part in hardware if part),
        "Versions": ", ".join(f"{name} {clipped(of)}" for name, of in versions if of),
    }


def _moment(text: str | None) -> str:
    """A time to the minute; "" for any other text."""
    try:
        return datetime.fromisoformat(text or "").strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return ""


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _settings(report: Report) -> Table | None:
    settings = {
        name: {key: clipped(value) for key, value, _ in facts.settings.rows()}
        for name, facts in zip(report.names, report.runs, strict=True)
        if facts.settings is not None
    }
    return _per_run("settings", settings)


def _environments(report: Report) -> Table | None:
    entries = {
        name: _environment(facts.environment)
        for name, facts in zip(report.names, report.runs, strict=True)
        if facts.environment
    }
    return _per_run("entries", entries)


def _yes_or_no(value: bool | None) -> str:
    return "" if value is None else ("no", "yes")[value]


def _per_run(what: str, by_run: Mapping[str, Mapping[str, str]]) -> Table | None:
    """Keys, and the value that each run has for them; those that differ are marked."""
    keys = list(dict.fromkeys(key for rows in by_run.values() for key in rows))
    values = [[rows.get(key, "–") for rows in by_run.values()] for key in keys]
    marked = [number for number, row in enumerate(values) if len(set(row)) > 1]
    rows = [
        [f"≠ {key}" if number in marked else key, *values[number]]
        for number, key in enumerate(keys)
    ]
    if not rows:
        return None
    several = len(by_run) > 1
    caption = f"All {len(rows)} {what}" + (f"; ≠ marks the {len(marked)} that differ" * several)
    columns = ["", *(by_run if several else ["value"])]
    return Table(caption, columns, rows, left=len(columns), marked=marked)


def _environment(ran: records.Environment) -> dict[str, str]:
    data = ran.dataset or {}
    plugins = {
        f"plugin: {kind}": f"{plugin.name} {plugin.distribution} {plugin.version}"
        for kind, plugin in (ran.plugins or {}).items()
    }
    rows: dict[str, str | None] = {
        "command": " ".join(ran.command or ()),
        "started": ran.started,
        "platform": ran.platform,
        "processor": ran.processor,
        "device": ran.device,
        "threads": str(ran.threads or ""),
        "cpu_capability": ran.cpu_capability,
        "strategy": ran.strategy,
        "compiled kernels": _yes_or_no(ran.kernels),
        "hidra-cli": ran.hidra_cli,
        "python": ran.python,
        **(ran.packages or {}),
        **plugins,
        **{
            f"data: {key}": data.get(key)
            for key in ("title", "licence", "citation", "options", "created", "content_hash")
        },
    }
    shown = {clipped(key): clipped(value) for key, value in rows.items() if value}
    homepage = clipped(data.get("homepage", ""))
    if re.fullmatch(r"https?://[!-~]+", homepage):
        link = Markup('<a href="{0}" rel="noreferrer">{0}</a>')
        shown["data: homepage"] = link.format(homepage)
    return shown
