"""Flags of the commands that read people's own pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hidra_cli.commands.flags import with_default

if TYPE_CHECKING:
    from hidra_cli.images.own_pictures import PictureOptions

_PANEL = "How pictures are read"

Fit = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option(
        help=with_default(
            "How another shape is fitted: crop cuts ends off, pad keeps them, stretch distorts.",
            "as the model's images",
        ),
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        help=with_default("Colour behind transparent pixels.", "as the model's images, white"),
        rich_help_panel=_PANEL,
    ),
]
ValueRange = Annotated[
    str | None,
    typer.Option(
        help=with_default(
            "Stored values that mean black and white, such as 0:4095.", "the usual one that fits"
        ),
        metavar="LOW:HIGH",
        rich_help_panel=_PANEL,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        help=with_default("Refuse larger pictures.", "250 million"),
        min=1,
        rich_help_panel=_PANEL,
    ),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken",
        help="Leave out pictures that cannot be read, and count them.",
        rich_help_panel=_PANEL,
    ),
]


def picture_options(
    fit: Literal["crop", "pad", "stretch"] | None = None,
    background: str | None = None,
    value_range: str | None = None,
    max_pixels: int | None = None,
    skip_broken: bool = False,
) -> PictureOptions:
    """What the flags say.

    Raises:
        UsageError: the range is not two numbers.
    """
    from hidra_cli.api.decoding import MOST_PIXELS
    from hidra_cli.errors import UsageError
    from hidra_cli.images.own_pictures import PictureOptions

    limits = None
    if value_range is not None:
        try:
            low, high = map(float, value_range.split(":"))
        except ValueError as exc:
            raise UsageError(
                f"--value-range {value_range} cannot be used",
                why="it is not two numbers with a colon between them",
                fix="--value-range 0:4095",
            ) from exc
        limits = (low, high)
    return PictureOptions(fit, background, limits, max_pixels or MOST_PIXELS, skip_broken)
