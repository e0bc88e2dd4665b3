"""`hidra presets`: the settings that ship with hidra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hidra_cli.commands import completion, flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console

app = typer.Typer(help="List and show the settings that ship with hidra.", no_args_is_help=True)


@app.command("list")
@flags.with_console
def list_presets(console: Console) -> None:
    """List every preset and what it is for.

    Next: hidra presets show NAME
    """
    from hidra_cli.settings.presets import preset_names, preset_text, summary_of

    presets = [(name, summary_of(preset_text(name))) for name in preset_names()]
    console.table("Presets", ["name", "what"], presets, left=2)
    console.result({"presets": [{"name": name, "summary": what} for name, what in presets]})


@app.command("show")
@flags.with_console
def show(
    console: Console,
    name: Annotated[
        str, typer.Argument(help="Name of a preset.", autocompletion=completion.presets)
    ],
) -> None:
    """Print a preset as the TOML file it is, with its comments.

    Examples:

      hidra presets show omniglot-5way

      hidra presets show omniglot-5way > mine.toml

    Next: hidra meta-train --preset NAME, or --config mine.toml
    """
    import tomllib

    from hidra_cli.settings.presets import preset_text, summary_of

    text = preset_text(name)
    console.raw(text)
    console.result(
        {
            "name": name,
            "summary": summary_of(text),
            "settings": tomllib.loads(text),
            "text": text,
        }
    )
