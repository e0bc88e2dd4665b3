"""The presets that ship with hidra: TOML files of settings. Reading them needs no pydantic."""

from __future__ import annotations

from importlib import resources

from hidra_cli.errors import UsageError, nearest


def preset_names() -> list[str]:
    """The presets that ship with hidra."""
    folder = resources.files("hidra_data") / "presets"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def preset_text(name: str) -> str:
    """The TOML text of a preset, with its comments.

    Raises:
        UsageError: there is no such preset; the error says the nearest name.
    """
    names = preset_names()
    if name not in names:
        raise UsageError(
            f"there is no preset called '{name}'",
            why=nearest(name, names),
            fix="choose one of " + ", ".join(names),
        )
    return (resources.files("hidra_data") / "presets" / f"{name}.toml").read_text("utf-8")


def summary_of(text: str) -> str:
    """The first comment line of a preset."""
    lines = (line.strip() for line in text.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
