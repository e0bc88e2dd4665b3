"""`hidra info`: versions, devices and places, as a bug report needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hidra_cli.commands import flags

if TYPE_CHECKING:
    from hidra_cli.system.console import Console


@flags.with_console
def info(
    console: Console,
    cache_dir: flags.CacheDir = None,
    runs_dir: flags.RunsDir = None,
) -> None:
    """Show versions, devices, caches and prepared datasets."""
    from hidra_cli.jobs.info import installation
    from hidra_cli.reports.installation import show_installation

    show_installation(installation(cache_dir, runs_dir), console)
